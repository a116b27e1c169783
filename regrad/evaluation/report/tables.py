"""The tables of a report, as grids of text that Markdown, LaTeX and HTML are written from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from regrad.evaluation.report.entries import ReportEntry
from regrad.text import readable_size

Sign = Literal["", "+", "-"]
"""Significantly better, or worse, than the method that others are compared to."""

UNKNOWN = "-"


@dataclass(frozen=True)
class CellText:
    """The content of a table's cell."""

    text: str
    detail: str = ""
    strong: bool = False
    sign: Sign = ""


@dataclass(frozen=True)
class Grid:
    """A table: its first `names` columns are words, the others numbers."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[CellText, ...], ...]
    names: int = 1


def percent(value: float) -> str:
    """A score from 0 to 1 in points."""
    return f"{100 * value:.1f}"


def interval(low: float, high: float) -> str:
    """An interval of scores in points."""
    return f"[{percent(low)}, {percent(high)}]"


def chance(p: float) -> str:
    """A p value."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def number(value: float | None) -> str:
    """A measured number with three digits, or a dash."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def size(value: float | None) -> str:
    """Bytes, or a dash."""
    if value is None:
        return UNKNOWN
    return f"{value:.0f} B" if value < 1000 else readable_size(value)  # short, as a cell is narrow


ALPHA = 0.05

_Row = tuple[str, int]
"""Method and k."""


def score_grid(title: str, entries: Sequence[ReportEntry], metric: str, compare_to: str | None) -> Grid:
    """Methods x sets of one model. The best of a set is strong, what differs from `compare_to` is marked."""
    sets = list(dict.fromkeys(entry.set for entry in entries))
    found = {(entry.method, entry.k, entry.set): entry for entry in entries}
    best = {name: max(entry.value for entry in entries if entry.set == name) for name in sets}
    several = len(sets) > 1
    # A column of equal words says nothing.
    compared = len({(entry.set, entry.retriever) for entry in entries if entry.k}) > len(sets)
    rows = []
    for method, k in _rows(entries):
        mine = [found.get((method, k, name)) for name in sets]
        there = [entry for entry in mine if entry]
        mean = [CellText(percent(fmean(entry.value for entry in there)) if len(there) == len(sets) else UNKNOWN)]
        cells = []
        for entry in mine:
            if entry is None:
                cells.append(CellText(UNKNOWN))
                continue
            detail = interval(entry.low, entry.high)
            cells.append(CellText(percent(entry.value), detail, entry.value == best[entry.set], _sign(entry)))
        by = [CellText(_retrievers(there))] * compared
        rows.append((CellText(method), *by, CellText(_k(k)), *cells, *mean * several))
    head = ("method", *["passages by"] * compared, "k", *sets, *["mean"] * several)
    return Grid(title, _score_note(entries, metric, compare_to), head, tuple(rows), names=2 + compared)


def detail_grid(entries: Sequence[ReportEntry], compare_to: str | None) -> Grid:
    """One row an entry, with everything about its score."""
    # Most runs show none.
    some = any(entry.demonstrations for entry in entries)
    head = ("model", "set", "method", "passages by", *["demonstrations"] * some, "k")
    head += ("questions", "EM", "F1", "precision", "recall", "unparsable")
    against = (f"against {compare_to}", "p, t-test", "p, bootstrap") if compare_to else ()
    rows = [(*_details(entry, some), *(_against(entry) if compare_to else ())) for entry in entries]
    note = (
        "EM, F1, precision and recall in points; of closed questions all four are the accuracy. Unparsable: answers "
        "that name none of the allowed ones (or are empty); they count as wrong. 200 × 3 questions are 200 with three "
        "seeds; intervals and tests are over questions, each with its mean over the seeds. p is after Holm's "
        "correction over all comparisons of the report."
    )
    return Grid("Details", note, (*head, *against), tuple(rows), names=4 + some)


def reader_grid(entries: Sequence[ReportEntry]) -> Grid:
    """The accuracy of the closed questions by each of the readers, whichever of them the scores are by."""
    closed = [entry for entry in entries if entry.readers]
    readers = list(dict.fromkeys(name for entry in closed for name in entry.readers))
    head = (
        *("model", "set", "method", "k", "closed questions"),
        *(f"{n}{of}" for n in readers for of in ("", ", unread")),
    )
    rows = []
    for entry in closed:
        cells = [CellText(text) for text in (entry.model, entry.set, entry.method, _k(entry.k))]
        cells.append(CellText(number(sum(count for kind, count in entry.kinds.items() if kind != "open"))))
        for found in entry.readers.values():
            cells.append(CellText(percent(found.accuracy), interval(found.low, found.high)))
            cells.append(CellText(number(found.unparsable)))
        rows.append(tuple(cells))
    note = (
        "Accuracy in points, with 95% intervals, of the same answers read by each of the two readers; a set's `reader` "
        "says which of them all other tables are by. Unread: answers in which a reader finds none of the allowed ones."
    )
    return Grid("Closed questions by both readers", note, head, tuple(rows), names=3)


def cost_grid(entries: Sequence[ReportEntry]) -> Grid:
    """What a question and a passage cost by each method, the mean over the sets of one model."""
    head = (
        *("model", "method", "k", "ms a question", "ms retrieval", "prompt tokens", "answer tokens", "fetched"),
        *("preparation, ms a passage", "storage a passage"),
    )
    rows = []
    for model in dict.fromkeys(entry.model for entry in entries):
        ours = [entry for entry in entries if entry.model == model]
        for method, k in _rows(ours):
            rows.append((CellText(model), *_costs(method, k, [e for e in ours if (e.method, e.k) == (method, k)])))
    devices = sorted({device for entry in entries for device in entry.devices})
    note = (
        "Milliseconds are the time of a batch (making the updates, and decoding) divided by its questions, so they say "
        "throughput, not the latency of one question alone; retrieval (of passages, and of the nearest demonstrations) "
        "is apart. Loading models is in none of them. "
        f"{UNKNOWN}: not known. Measured on: {'; '.join(devices) or 'unknown'}."
    )
    return Grid("Costs", note, head, tuple(rows), names=2)


def _rows(entries: Sequence[ReportEntry]) -> list[_Row]:
    """Methods in their order, each with its ks."""
    methods = list(dict.fromkeys(entry.method for entry in entries))
    return sorted({(entry.method, entry.k) for entry in entries}, key=lambda row: (methods.index(row[0]), row[1]))


def _retrievers(entries: Sequence[ReportEntry]) -> str:
    """How a method's passages are found, on all of its sets."""
    return ", ".join(dict.fromkeys(entry.retriever for entry in entries if entry.retriever)) or UNKNOWN


def _sign(entry: ReportEntry) -> Sign:
    against = entry.against
    if against is None or max(against.holm_t, against.holm_bootstrap) >= ALPHA:
        return ""
    return "+" if against.difference > 0 else "-"


def _score_note(entries: Sequence[ReportEntry], metric: str, compare_to: str | None) -> str:
    kinds = {kind for entry in entries for kind in entry.kinds}
    what = metric.upper()
    if kinds and "open" not in kinds:
        what = "Accuracy"
    elif kinds - {"open"}:
        what += " (accuracy of closed questions)"
    note = f"{what} in points, with 95% intervals. The best of each set is bold."
    # The score of a set with open and closed questions is one mean of both.
    mixed = {entry.set: entry.kinds for entry in entries if "open" in entry.kinds and len(entry.kinds) > 1}
    for name, counts in mixed.items():
        shown = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        note += f" {name} mixes kinds of questions ({shown}): the closed ones count with their accuracy."
    if compare_to:
        note += (
            f" ▲ and ▼: better and worse than {compare_to} at the same k (or, if one of the two retrieves nothing, at "
            f"the first k), p < {ALPHA} by both the paired t-test and the paired bootstrap, after Holm's correction "
            "over all comparisons of the report."
        )
    return note


def _details(entry: ReportEntry, demonstrations: bool) -> Iterator[CellText]:
    count = f"{entry.questions}" + (f" × {entry.seeds}" if entry.seeds > 1 else "")
    yield from (
        CellText(entry.model),
        CellText(entry.set),
        CellText(entry.method),
        CellText(entry.retriever or UNKNOWN),
        *[CellText(entry.demonstrations or UNKNOWN)] * demonstrations,
        CellText(_k(entry.k)),
        CellText(count),
    )
    for name in ("em", "f1", "precision", "recall"):
        yield CellText(percent(getattr(entry, name)))
    yield CellText(number(entry.unparsable))


def _against(entry: ReportEntry) -> Iterator[CellText]:
    if entry.against is None:
        yield from [CellText(UNKNOWN)] * 3
        return
    found = entry.against
    yield CellText(f"{100 * found.difference:+.1f}", interval(*found.interval), sign=_sign(entry))
    yield from (CellText(chance(found.holm_t)), CellText(chance(found.holm_bootstrap)))


def _costs(method: str, k: int, entries: Sequence[ReportEntry]) -> Iterator[CellText]:
    yield from (CellText(method), CellText(_k(k)))
    yield CellText(number(fmean(entry.milliseconds for entry in entries)))
    searched = any(entry.searches for entry in entries)
    yield CellText(number(_known(entry.retrieval_ms for entry in entries) if searched else None))
    yield CellText(number(fmean(entry.prompt_tokens for entry in entries)))
    yield CellText(number(fmean(entry.completion_tokens for entry in entries)))
    yield CellText(size(fmean(entry.bytes_fetched for entry in entries)))
    yield CellText(number(_known(entry.preparation_ms for entry in entries)))
    yield CellText(size(_known(entry.storage_bytes for entry in entries)))


def _known(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _k(k: int) -> str:
    return str(k) if k else UNKNOWN
