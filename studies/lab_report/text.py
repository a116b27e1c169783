"""The report as Markdown, from what was computed; no number is written by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from regrad.evaluation.report.entries import ReportEntry
from regrad.evaluation.report.tables import UNKNOWN, CellText, Grid, chance, number, percent, score_grid, size
from regrad.evaluation.report.writing import escape_markdown, table_lines
from studies.document import Picture, section, shown
from studies.lab_report.claims.claim import ALPHA, Claim, Part, Unit
from studies.lab_report.findings import BY_RANK, Duel
from studies.lab_report.plan import reference
from studies.lab_report.records import Measured

TITLES = {
    "methods": "Every method",
    "passages": "How many passages, and which",
    "merges": "How several gradients become one",
    "drift": "Documents injected step by step",
    "general": "General ability: people whom the base has memorised",
    "domains": "Another domain",
    "hard": "The harder labs, with starts that were trained on people alone",
    "notes": "More text than the context holds, with starts that were trained on such notes",
}
ABOUT = {
    "hard": (
        "A start takes in the kind of text that it was trained on, and these were trained on short passages about "
        "people: the rows of ReGrad say what an unprepared start gives on other text. Of `many` the next table has "
        "starts that were trained on such notes; of `long`, `conflict` and `unseen` none were, so no claim rests on "
        "them. There is no two-hop set, since the lab's base cannot read one (docs/benchmarks.md).",
    ),
    "notes": (
        "A person of `many` has five notes that BM25 cannot tell apart: up to k=5 the right one is there for about k "
        "of five questions, whatever the method. The starts were trained on five such notes at once.",
    ),
}
"""Paragraphs before a study's table."""


@dataclass(frozen=True)
class Report:
    """Everything that the document says."""

    claims: Sequence[Claim]
    entries: Mapping[str, Sequence[ReportEntry]]
    duels: Sequence[Duel]
    gaps: Mapping[str, Any]
    measured: Measured
    hardware: str
    seconds: float
    seeds: Sequence[int]
    quick: bool


def document(report: Report, figures: Sequence[Picture]) -> list[str]:
    """All of it."""
    parts = ["# The lab report", *_head(report), "## The nine claims", _summary(report.claims)]
    for claim in report.claims:
        parts += _claim(claim)
    parts += ["## Where RAG wins", *_duels(report.duels)]
    parts += ["## Figures", *shown(figures)]
    parts += ["## Interference", _interference(report.gaps)]
    for name, entries in report.entries.items():
        parts += section(score_grid(TITLES[name], entries, "em", reference(name)), ABOUT.get(name, ()))
    return [*parts, "## What it costs", *_costs(report.measured)]


def _head(report: Report) -> Iterator[str]:
    true = sum(claim.reproduced for claim in report.claims)
    asked = report.entries["methods"][0].questions
    yield (
        f"Written by `regrad lab report` from its records, {report.seconds / 60:.0f} minutes of work on "
        f"{report.hardware}. Everything is the lab world: invented people, a Llama of a million parameters, {asked} "
        f"questions, seeds {', '.join(map(str, report.seeds))} of every meta-trained start and of CPT. Other baselines "
        "were trained once."
    )
    if report.quick:
        yield "**A quick run: one seed, or too short trainings. It shows that everything runs; no number is of use.**"
    yield (
        f"**{true} of the {len(report.claims)} claims are reproduced.** A claim is, if all its parts are on the right "
        "side and the largest of their p is below 0.05 after Holm's correction over the nine. Tests are paired over "
        "questions (a question's seeds are averaged first): the larger p of a t-test and a bootstrap counts. "
        "The lab is a model of the method, not of language: what fails or holds here need not at another size."
    )


def _summary(claims: Sequence[Claim]) -> str:
    rows = [
        (
            str(claim.id),
            claim.statement,
            _value(claim.main.value, claim.main.unit),
            _interval(claim.main),
            chance(claim.p),
            CellText("reproduced" if claim.reproduced else "not reproduced", strong=True),
        )
        for claim in claims
    ]
    return _table(("", "claim", "value", "95% interval", "p", "verdict"), rows, names=2)


def _claim(claim: Claim) -> Iterator[str]:
    yield f"### {claim.id}. {escape_markdown(claim.statement)}"
    verdict = "Reproduced" if claim.reproduced else "Not reproduced"
    yield (
        f"**{verdict}.** {escape_markdown(claim.measure[0].upper() + claim.measure[1:])}: "
        f"{_value(claim.main.value, claim.main.unit)} {_interval(claim.main)}, p {chance(claim.p)} (corrected)."
    )
    rows = [
        (
            part.text,
            _value(part.value, part.unit),
            _interval(part),
            UNKNOWN if part.p is None else chance(part.p),
            CellText(_holds(part), strong=not part.holds),
        )
        for part in claim.parts
    ]
    yield _table(("must hold", "value", "95% interval", "p", "holds"), rows)
    if claim.notes:
        yield escape_markdown(" ".join(claim.notes))


def _holds(part: Part) -> str:
    if part.holds:
        return "yes"
    opposite = not part.direction and part.p is not None and part.p < ALPHA
    return "no, the opposite" if opposite else "no"


def _duels(duels: Sequence[Duel]) -> Iterator[str]:
    rows = [
        (
            f"{duel.rag.set} ({duel.rag.study})",
            str(duel.rag.k),
            duel.rag.method,
            duel.ours.method,
            f"{100 * duel.comparison.difference:+.1f}",
            f"[{percent(duel.comparison.interval.low)}, {percent(duel.comparison.interval.high)}]",
            chance(duel.p),
            CellText(duel.verdict, strong=duel.verdict == "RAG"),
        )
        for duel in duels
    ]
    won = Counter(duel.verdict for duel in duels)
    yield (
        "RAG with the base model, and RAG fine-tuned on the same tasks (ft-rag), against the best of ReGrad's rows on "
        "these questions (the start that did best there, with or without the passages in the prompt: a choice that "
        f"favours ReGrad), at the same k: RAG is significantly better in {won['RAG']} of {len(duels)}, ReGrad in "
        f"{won['ReGrad']}. Points of exact match of RAG less ReGrad's; p after Holm's correction over all."
    )
    yield _table(
        ("set (study)", "k", "RAG", "best of ReGrad", "RAG's lead", "95% interval", "p", "better"), rows, names=4
    )


def _interference(gaps: Mapping[str, Any]) -> str:
    return (
        "Points of exact match that ReGrad loses against k=1 with the gold passage among the k (BM25 finds it always, "
        f"or nearly so). Of the best merge that looks at no score and no rank, `{gaps['gap_variant']}`: "
        f"{gaps['k3_gap']:.1f} at k=3 and {gaps['k5_gap']:.1f} at k=5 (targets 5 and 10); of the paper's sum "
        f"{gaps['k3_gap_sum']:.1f} and {gaps['k5_gap_sum']:.1f}. {', '.join(BY_RANK[:-1])} and {BY_RANK[-1]} go by the "
        "passages' scores or rank, which are right in this lab, and so say little. All starts were trained on "
        "questions that rest on five passages, which is itself a remedy; the merge was picked on these very "
        "questions. A learned gate, and starts trained on three passages, are measured in docs/benchmarks.md."
    )


def _costs(measured: Measured) -> Iterator[str]:
    direct = measured.latency["direct"]
    rows = [
        (name, number(fmean(values)), f"{fmean(a / b for a, b in zip(values, direct, strict=True)):.2f}")
        for name, values in measured.latency.items()
    ]
    yield _table(("method, k=3", "ms a question", "over direct"), rows)
    yield _table(("kept of a passage", "bytes"), [(name, size(value)) for name, value in measured.bytes.items()])
    weights = "are bit-identical" if measured.unchanged else "HAVE CHANGED: this is a bug"
    yield (
        "One question at a time in one process and on one thread, the same number of new tokens for all, atoms in "
        f"memory, no retrieval. The base weights, and the base's answers about memorised people, {weights} after "
        "questions under updates."
    )


def _value(value: float, unit: Unit) -> str:
    return {"points": f"{value:+.1f}", "ratio": f"× {value:.2f}", "count": number(value)}[unit]


def _interval(part: Part) -> str:
    if part.interval is None:
        return UNKNOWN
    digits = 1 if part.unit == "points" else 2
    return f"[{part.interval.low:.{digits}f}, {part.interval.high:.{digits}f}]"


def _table(head: tuple[str, ...], rows: Iterable[Sequence[str | CellText]], names: int = 1) -> str:
    texts = (tuple(CellText(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
    return "\n".join(table_lines(Grid("", "", head, tuple(texts), names)))
