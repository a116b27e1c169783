"""How often each retriever found the passage that has the answer, from what the evaluations asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from regrad.data.jsonl import read_jsonl
from regrad.evaluation.records import Record
from regrad.evaluation.report.tables import CellText, Grid
from studies.real.config import RealConfig
from studies.real.plan import BY_RETRIEVER

_ASKED = "rag"
"""The method whose records are looked at: all that retrieve are given the same passages."""


def found_grid(config: RealConfig, records: Mapping[str, Sequence[Record]]) -> Grid | None:
    """The share of questions whose gold passage is among the first k, in percent; None if nothing was retrieved."""
    asked = {name: [one for one in records.get(study, ()) if one.method == _ASKED] for name, study in _studies(config)}
    if not any(asked.values()):
        return None
    gold: dict[str, dict[str, set[str]]] = {name: _gold(config, name) for name in config.retrieved_sets}
    rows = [row for name, found in asked.items() for row in _rows(name, found, gold)]
    head = ("retriever", "k", *config.retrieved_sets)
    note = "Percent of the questions whose gold passage is among the first k."
    return Grid("How often the passage is found", note, head, tuple(rows))


def _studies(config: RealConfig) -> list[tuple[str, str]]:
    return [(name, BY_RETRIEVER[name]) for name in config.retrievers]


def _rows(
    name: str, records: Sequence[Record], gold: Mapping[str, Mapping[str, set[str]]]
) -> Iterator[tuple[CellText, ...]]:
    for k in sorted({one.k for one in records}):
        shares = (_share([one for one in records if (one.set, one.k) == (of, k)], gold[of]) for of in gold)
        yield CellText(name), CellText(str(k)), *map(CellText, shares)


def _gold(config: RealConfig, name: str) -> dict[str, set[str]]:
    lines = read_jsonl(f"{config.output}/sets/{name}/questions.jsonl")
    return {raw["id"]: set(raw["passage_ids"]) for _, raw in lines}


def _share(records: Sequence[Record], gold: Mapping[str, set[str]]) -> str:
    if not records:
        return "-"
    return f"{100 * sum(bool(gold[one.question_id] & set(one.passage_ids)) for one in records) / len(records):.0f}"
