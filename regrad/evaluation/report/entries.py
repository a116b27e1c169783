"""The entries of a report: one method on one set with one model at one k, summarised and compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from regrad.evaluation.output import CellCard, Output, Planned, RunCard
from regrad.evaluation.records import Record
from regrad.evaluation.statistics import Column, Comparison, by_question, compare, corrected, mean_interval

EntryKey = tuple[str, str, str, int]
"""Model, set, method, k."""


@dataclass(frozen=True)
class ReaderScore:
    """What one reader of closed questions makes of the answers: its accuracy, and in how many it finds none."""

    accuracy: float
    low: float
    high: float
    unparsable: int


@dataclass(frozen=True)
class ReportEntry:
    """Scores are from 0 to 1; costs are means over the questions, None if they are not known.

    `value` is the chosen metric with its interval, and `by_question` has it for each question; `kinds` counts the
    questions of each kind, `noted` the records with a note; `readers` scores the closed questions alone, by each of the
    readers, and is empty without any; `retriever` is the kind of index, or where else the passages are from;
    `demonstrations` says how many and which, and is empty for none; `against` is the comparison with the method that
    the others are compared to.
    """

    model: str
    set: str
    method: str
    k: int
    questions: int
    seeds: int
    closed: bool
    value: float
    low: float
    high: float
    em: float
    f1: float
    precision: float
    recall: float
    unparsable: int
    milliseconds: float
    retrieval_ms: float | None
    prompt_tokens: float
    completion_tokens: float
    bytes_fetched: float
    preparation_ms: float | None
    storage_bytes: float | None
    by_question: Mapping[tuple[str, str], float]
    noted: int
    devices: frozenset[str]
    kinds: Mapping[str, int]
    readers: Mapping[str, ReaderScore]
    retriever: str = ""
    demonstrations: str = ""
    against: Comparison | None = None

    @property
    def key(self) -> EntryKey:
        """Model, set, method and k."""
        return self.model, self.set, self.method, self.k

    @property
    def searches(self) -> bool:
        """Whether something is searched for: passages, or demonstrations that are not the first of their file."""
        return self.k > 0 or self.demonstrations.endswith("nearest")


_Cells = list[tuple[CellCard, list[Record], RunCard | None]]


def gather(output: Output, planned: Planned) -> list[ReportEntry]:
    """An entry for each model, set, method and k that has records, in the order of the plan, with its comparison.

    A cell whose file is damaged is left out, with a warning.
    """
    groups: dict[EntryKey, _Cells] = defaultdict(list)
    for card in output.done(planned):
        records = output.sound(card.name, "counts as not done")
        if records:
            groups[card.model, card.set, card.method, card.k].append((card, records, output.run_card(card)))
    entries = [_entry(cells, planned.metric) for cells in groups.values()]
    comparisons = _comparisons(entries, planned.compare_to, planned.k[0])
    return [replace(entry, against=comparisons.get(entry.key)) for entry in entries]


def _entry(cells: _Cells, metric: Column) -> ReportEntry:
    card = cells[0][0]
    records = [record for _, found, _ in cells for record in found]
    values = by_question(records, metric)
    low, high = mean_interval(list(values.values()))
    runs = [run for _, _, run in cells if run]
    return ReportEntry(
        *(card.model, card.set, card.method, card.k),
        questions=len(values),
        seeds=len(cells),
        closed=all(record.kind != "open" for record in records),
        value=fmean(values.values()),
        low=low,
        high=high,
        em=fmean(record.em for record in records),
        f1=fmean(record.f1 for record in records),
        precision=fmean(record.precision for record in records),
        recall=fmean(record.recall for record in records),
        milliseconds=fmean(record.milliseconds for record in records),
        prompt_tokens=fmean(record.prompt_tokens for record in records),
        completion_tokens=fmean(record.completion_tokens for record in records),
        bytes_fetched=fmean(record.bytes_fetched for record in records),
        unparsable=sum(not record.parsed for record in records),
        retrieval_ms=1e3 * sum(run.retrieval for run in runs) / len(records) if len(runs) == len(cells) else None,
        preparation_ms=card.preparation_ms,
        storage_bytes=card.storage_bytes,
        by_question=values,
        noted=sum(bool(record.note) for record in records),
        devices=frozenset(run.device for run in runs),
        kinds=dict(Counter({record.question_id: record.kind for record in records}.values())),
        readers=_readers([record for record in records if record.kind != "open"]),
        retriever=card.retriever,
        demonstrations=card.demonstrations,
    )


def _readers(closed: Sequence[Record]) -> dict[str, ReaderScore]:
    found = {}
    if closed:
        columns: dict[str, tuple[Column, Column]] = {
            "strict": ("strict_correct", "strict_parsed"),
            "release": ("release_correct", "release_parsed"),
        }
        for reader, (correct, parsed) in columns.items():
            values = list(by_question(closed, correct).values())
            unparsable = sum(not getattr(record, parsed) for record in closed)
            found[reader] = ReaderScore(fmean(values), *mean_interval(values), unparsable)
    return found


def _comparisons(entries: Sequence[ReportEntry], name: str | None, first_k: int) -> dict[EntryKey, Comparison]:
    """Each entry against the reference's, where both answered the same questions; Holm's correction over all."""
    found: dict[EntryKey, Comparison] = {}
    by_key = {entry.key: entry for entry in entries}
    for entry in entries:
        if name is None or entry.method == name:
            continue
        # At the same k; if one of the two methods retrieves nothing, and so has no k, at the first one.
        candidates = [entry.k, 0] + [first_k] * (entry.k == 0)
        keys = [(entry.model, entry.set, name, k) for k in candidates]
        other = next((by_key[key] for key in keys if key in by_key), None)
        if other and len(entry.by_question) > 1 and other.by_question.keys() == entry.by_question.keys():
            pairs = [(value, other.by_question[question]) for question, value in entry.by_question.items()]
            found[entry.key] = compare([value for value, _ in pairs], [value for _, value in pairs])
    return corrected(found)
