"""The tables of a report, as grids of text that Markdown, LaTeX and HTML are written from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from regrad.evaluation.report.entries import Entry

Sign = Literal["", "+", "-"]
"""Significantly better, or worse, than the method that others are compared to."""

UNKNOWN = "-"


@dataclass(frozen=True)
class Text:
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
    rows: tuple[tuple[Text, ...], ...]
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
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


ALPHA = 0.05

Row = tuple[str, int]
"""Method and k."""


def score_grid(title: str, entries: Sequence[Entry], metric: str, compare_to: str | None) -> Grid:
    """Methods x sets of one model. The best of a set is strong, what differs from `compare_to` is marked."""
    sets = list(dict.fromkeys(entry.set for entry in entries))
    found = {(entry.method, entry.k, entry.set): entry for entry in entries}
    best = {name: max(entry.value for entry in entries if entry.set == name) for name in sets}
    several = len(sets) > 1
    rows = []
    for method, k in _rows(entries):
        mine = [found.get((method, k, name)) for name in sets]
        there = [entry for entry in mine if entry]
        mean = [Text(percent(fmean(entry.value for entry in there)) if len(there) == len(sets) else UNKNOWN)]
        cells = [_score(entry, best[entry.set]) if entry else Text(UNKNOWN) for entry in mine]
        rows.append((Text(method), Text(_k(k)), *cells, *mean * several))
    head = ("method", "k", *sets, *["mean"] * several)
    return Grid(title, _score_note(entries, metric, compare_to), head, tuple(rows), names=2)


def detail_grid(entries: Sequence[Entry], compare_to: str | None) -> Grid:
    """One row an entry, with everything about its score."""
    head = ("model", "set", "method", "k", "questions", "EM", "F1", "precision", "recall", "unparsable")
    against = (f"against {compare_to}", "p, t-test", "p, bootstrap") if compare_to else ()
    rows = [(*_details(entry), *(_against(entry) if compare_to else ())) for entry in entries]
    note = (
        "EM, F1, precision and recall in points; of closed questions all four are the accuracy. Unparsable: answers "
        "that name none of the allowed ones (or are empty); they count as wrong. 200 × 3 questions are 200 with three "
        "seeds; intervals and tests are over questions, each with its mean over the seeds. p is after Holm's "
        "correction over all comparisons of the report."
    )
    return Grid("Details", note, (*head, *against), tuple(rows), names=3)


def cost_grid(entries: Sequence[Entry]) -> Grid:
    """What a question and a passage cost by each method, the mean over the sets of one model."""
    head = (
        *("model", "method", "k", "ms a question", "ms retrieval", "prompt tokens", "answer tokens", "fetched"),
        *("preparation, ms a passage", "storage a passage"),
    )
    rows = []
    for model in dict.fromkeys(entry.model for entry in entries):
        ours = [entry for entry in entries if entry.model == model]
        for method, k in _rows(ours):
            rows.append((Text(model), *_costs(method, k, [e for e in ours if (e.method, e.k) == (method, k)])))
    devices = sorted({device for entry in entries for device in entry.devices})
    note = (
        "Milliseconds are the time of a batch (making the updates, and decoding) divided by its questions, so they say "
        "throughput, not the latency of one question alone; retrieval is apart. Loading models is in none of them. "
        f"{UNKNOWN}: not known. Measured on: {'; '.join(devices) or 'unknown'}."
    )
    return Grid("Costs", note, head, tuple(rows), names=2)


def _rows(entries: Sequence[Entry]) -> list[Row]:
    """Methods in their order, each with its ks."""
    methods = list(dict.fromkeys(entry.method for entry in entries))
    return sorted({(entry.method, entry.k) for entry in entries}, key=lambda row: (methods.index(row[0]), row[1]))


def _score(entry: Entry, best: float) -> Text:
    return Text(percent(entry.value), interval(entry.low, entry.high), entry.value == best, _sign(entry))


def _sign(entry: Entry) -> Sign:
    against = entry.against
    if against is None or max(against.holm_t, against.holm_bootstrap) >= ALPHA:
        return ""
    return "+" if against.difference > 0 else "-"


def _score_note(entries: Sequence[Entry], metric: str, compare_to: str | None) -> str:
    kinds = {kind for entry in entries for kind in entry.kinds}
    named = {False: f"{metric.upper()} (accuracy of closed questions)", True: "Accuracy"}
    what = named["open" not in kinds] if kinds - {"open"} else metric.upper()
    marks = (
        f" ▲ and ▼: better and worse than {compare_to} at the same k (or, if one of the two retrieves nothing, at the "
        f"first k), p < {ALPHA} by both the paired t-test and the paired bootstrap, after Holm's correction over all "
        "comparisons of the report."
        if compare_to
        else ""
    )
    return f"{what} in points, with 95% intervals. The best of each set is bold.{_mixed(entries)}{marks}"


def _mixed(entries: Sequence[Entry]) -> str:
    """A sentence for each set with open and closed questions, whose score is one mean of both."""
    mixed = {entry.set: entry.kinds for entry in entries if "open" in entry.kinds and len(entry.kinds) > 1}
    counts = {name: ", ".join(f"{count} {kind}" for kind, count in kinds.items()) for name, kinds in mixed.items()}
    return "".join(
        f" {name} mixes kinds of questions ({count}): the closed ones count with their accuracy."
        for name, count in counts.items()
    )


def _details(entry: Entry) -> Iterator[Text]:
    count = f"{entry.questions}" + (f" × {entry.seeds}" if entry.seeds > 1 else "")
    yield from (Text(entry.model), Text(entry.set), Text(entry.method), Text(_k(entry.k)), Text(count))
    for name in ("em", "f1", "precision", "recall"):
        yield Text(percent(getattr(entry, name)))
    yield Text(number(entry.unparsable))


def _against(entry: Entry) -> Iterator[Text]:
    if entry.against is None:
        yield from [Text(UNKNOWN)] * 3
        return
    found = entry.against
    yield Text(f"{100 * found.difference:+.1f}", interval(*found.interval), sign=_sign(entry))
    yield from (Text(chance(found.holm_t)), Text(chance(found.holm_bootstrap)))


def _costs(method: str, k: int, entries: Sequence[Entry]) -> Iterator[Text]:
    yield from (Text(method), Text(_k(k)))
    yield Text(number(fmean(entry.milliseconds for entry in entries)))
    yield Text(number(_known(entry.retrieval_ms for entry in entries) if k else None))
    yield Text(number(fmean(entry.prompt_tokens for entry in entries)))
    yield Text(number(fmean(entry.completion_tokens for entry in entries)))
    yield Text(size(fmean(entry.bytes_fetched for entry in entries)))
    yield Text(number(_known(entry.preparation_ms for entry in entries)))
    yield Text(size(_known(entry.storage_bytes for entry in entries)))


def _known(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _k(k: int) -> str:
    return str(k) if k else UNKNOWN
