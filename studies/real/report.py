"""`report.json`, the document and its pictures, from the records of the study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure

from regrad.evaluation.output import PLAN, Output
from regrad.evaluation.report.entries import ReportEntry, gather
from regrad.evaluation.report.figures import Pictures
from regrad.evaluation.report.tables import CellText, Grid, chance, cost_grid, score_grid
from regrad.evaluation.report.writing import escape_markdown, table_lines
from regrad.meta_init import read_card
from regrad.storage import Storage
from regrad.training.lora.lora_artifact import ADAPTER_CARD
from studies.document import Picture, hardware, pictures, section, shown, write_document, write_numbers
from studies.real.config import RealConfig
from studies.real.findings import Found, Table, best_prompts, figures, to_json
from studies.real.plan import BY_RETRIEVER, STUDIES, ft_rag_place, rows_left_out
from studies.real.reading import Reading, read_reading
from studies.real.retrieval import found_grid
from studies.real.sets import HELD

_DOCUMENT = "real-report.md"
_LEFT_OUT = {"by_question", "devices", "against"}
_TITLES = {
    "dev": "How Direct and RAG are best asked (training articles that are kept apart)",
    "gold": "With the passage that has the answer",
    "hops": "Several hops, with all passages that are needed, up to three",
    "retrieved": "Passages by BM25",
    "retrieved-dense": "Passages by dense retrieval",
    "retrieved-fused": "Passages by BM25 and dense retrieval, fused",
    "controls": "Passages without the answer",
    "prag": "An adapter for each passage, trained as PRAG does on the passage's other questions, written by people",
    "codecs": "What a codec costs",
}
_REFERENCE = {"dev": "rag", **dict.fromkeys(BY_RETRIEVER.values(), "ft-rag"), "codecs": "bf16"}
_OURS = "regrad"
_RIVALS_BATCH = 32


@dataclass(frozen=True)
class Report:
    """Everything that the document says."""

    config: RealConfig
    entries: Mapping[str, Sequence[ReportEntry]]
    found: Sequence[Found]
    prompts: Mapping[str, str]
    passages: Grid | None
    reading: Reading
    hardware: str
    seconds: float


def write_report(config: RealConfig, seconds: float) -> str:
    """Write everything; returns one line saying where and what came out."""
    outputs = {name: Output(f"{config.output}/studies/{name}") for name in STUDIES if _was_asked(config, name)}
    records = {
        name: [record for card in output.done(output.planned()) for record in output.records(card)]
        for name, output in outputs.items()
    }
    table = Table(records)
    prompts = best_prompts(table, HELD)
    report = Report(
        config=config,
        entries={name: gather(output, output.planned()) for name, output in outputs.items()},
        found=figures(table, prompts),
        prompts=prompts,
        passages=found_grid(config, records),
        reading=read_reading(config),
        hardware=hardware(),
        seconds=seconds,
    )
    place = config.report or f"{config.output}/{_DOCUMENT}"
    drawn = pictures("real", _pictures(report))
    write_document(place, document(report, drawn), drawn)
    write_numbers(config.output, _numbers(report))
    met = sum(one.met for one in report.found)
    return f"{met} of {len(report.found)} figures reach their target; report at {place}"


def _was_asked(config: RealConfig, study: str) -> bool:
    return Storage(f"{config.output}/studies/{study}").exists(PLAN)


def _pictures(report: Report) -> Iterator[tuple[str, str, Figure]]:
    yield (
        "gold",
        "Every method with the passage that has the answer (F1; accuracy of yes/no sets)",
        Pictures(report.entries["gold"]).scores(1),
    )
    if "retrieved" in report.entries and len(report.config.k) > 1:
        for name in report.config.retrieved_sets:
            yield f"k-{name}", f"Passages by BM25, {name}", Pictures(report.entries["retrieved"]).sweep(name)


def document(report: Report, images: Sequence[Picture]) -> list[str]:
    """The parts of it as Markdown; no number is written by hand."""
    parts = ["# A real model on real text", *_head(report), "## Verdict", *_verdict(report)]
    parts += ["## Figures", "\n".join(table_lines(_figure_grid(report.found)))]
    parts += ["## Is it reading?", *_reading(report.reading)]
    parts += shown(images)
    for name, entries in report.entries.items():
        reference = _REFERENCE.get(name, _OURS)
        against = _OURS if reference in rows_left_out(report.config) else reference
        parts += section(score_grid(_TITLES[name], entries, "f1", against))
    if found := report.passages:
        parts += section(found)
    costs = cost_grid(report.entries["gold"])
    return [*parts, "## What it costs", "\n".join(table_lines(costs)), escape_markdown(costs.note)]


def _head(report: Report) -> Iterator[str]:
    config = report.config
    asked = report.entries["gold"][0].questions
    yield (
        "Written by `python -m studies.real` from its records: SmolLM2-135M-Instruct, "
        f"{report.seconds / 60:.0f} minutes of work on {report.hardware}. Starts were meta-trained on SQuAD's training "
        f"articles, {_trained(config)}; {asked} questions of each set, on articles that were never trained on. "
        f"{_fine_tuned(config)}"
    )
    if left_out := sorted(rows_left_out(config)):
        yield f"**Left out**, as nothing was trained for them here: {', '.join(left_out)}."
    if config.quick:
        yield "**A quick run**: too few questions for a verdict. It shows that everything runs."
    yield (
        "No way of asking was chosen on the questions reported here: by training articles that are kept apart, Direct "
        f"is best asked as `{report.prompts['direct']}` and RAG as `{report.prompts['rag']}`, and these are compared "
        "below."
    )


def _trained(config: RealConfig) -> str:
    seed = config.seeds[0]
    before = f"once before ({_origin(config, f'regrad-{seed}')})" if config.start else f"{config.steps.regrad} steps"
    if config.start_icl:
        icl = f" (ReGrad + ICL: once before, with the passage in the prompt: {_origin(config, f'icl-{seed}')})"
    elif config.steps.icl:
        icl = f" (ReGrad + ICL: {config.steps.icl} steps more with the passage in the prompt)"
    else:
        icl = ""
    seeds = "one seed" if len(config.seeds) == 1 else f"{len(config.seeds)} seeds"
    return f"{before}, {config.batch_size} passages a step{icl}, {seeds}"


def _fine_tuned(config: RealConfig) -> str:
    steps = {"ft-direct": config.steps.ft_direct, "ft-rag": 0 if config.ft_rag else config.steps.ft_rag}
    trained = [f"{name} for {count} steps of {_RIVALS_BATCH}" for name, count in steps.items() if count]
    if config.ft_rag:
        card = ADAPTER_CARD.read(ft_rag_place(config))
        trained.append(f"ft-rag once before (LoRA {card['digest']}, {_length(card['notes'])})")
    if not trained:
        return ""
    return f"Fine-tuned on questions of the same tasks, on the same blocks with the same rank: {', '.join(trained)}."


def _origin(config: RealConfig, name: str) -> str:
    card = read_card(f"{config.output}/starts/{name}")
    return f"MetaInit {card['fingerprint']}, {_length(card['notes'])}"


def _length(notes: Mapping[str, Any]) -> str:
    """How long something was trained, and what it continued."""
    before = f" after {notes['parent']}" if notes.get("parent") else ""
    return f"{notes.get('steps', 'an unknown number of')} steps{before}"


def _verdict(report: Report) -> Iterator[str]:
    lines = [f"- {_sentence(one)}" for one in report.found]
    yield "\n".join(lines)


_CLAIMS = {
    "f1_regrad_minus_other": "The right passage's gradient against another passage's",
    "f1_regrad_minus_same_article": "The right passage's gradient against that of another passage of the same article",
    "f1_regrad_minus_direct": "ReGrad against the model alone at its best prompt",
    "f1_regrad_minus_ft_direct": "ReGrad against the model that was taught the task without the knowledge",
    "f1_regrad_minus_cpt": "ReGrad against continual training on the passages",
    "f1_regrad_minus_prag": "ReGrad against an adapter for each passage, trained as PRAG does on people's questions",
    "f1_regrad_minus_rag": "ReGrad, with nothing in the prompt, against RAG at its best prompt",
    "f1_regrad_icl_minus_rag": "Gradient and passage together against RAG at its best prompt",
    "f1_regrad_icl_minus_ft_rag": "Gradient and passage together against fine-tuned RAG",
    "em_int4_minus_bf16": "Atoms in 4 bits against bf16 (exact match)",
    "em_conflict_regrad_icl_minus_ft_rag": "Where the passage contradicts the model (NQ-Swap), gradient and passage "
    "together against fine-tuned RAG (exact match)",
}


def _sentence(one: Found) -> str:
    low, high = (100 * value for value in one.comparison.interval)
    verdict = "no difference is shown" if one.p >= 0.05 else "better" if one.points > 0 else "worse"
    return (
        f"{_CLAIMS[one.wanted.name]}: {one.points:+.1f} points [{low:.1f}, {high:.1f}], p {chance(one.p)}: {verdict}."
    )


def _figure_grid(found: Sequence[Found]) -> Grid:
    rows = [
        (
            CellText(one.wanted.name),
            CellText(
                f"{one.points:+.1f}",
                f"[{100 * one.comparison.interval.low:.1f}, {100 * one.comparison.interval.high:.1f}]",
            ),
            CellText(chance(one.p)),
            CellText(f"{one.wanted.target:g}"),
            CellText("yes" if one.met else "no", strong=not one.met),
        )
        for one in found
    ]
    return Grid("Figures", "", ("figure", "points", "p", "at least", "met"), tuple(rows))


def _reading(reading: Reading) -> Iterator[str]:
    yield (
        f"Outer loss (nats a token of the answer) on {reading.tasks} tasks of articles that were never trained on, "
        f"with the right passage's gradient **{reading.right:.2f}**, with another passage's **{reading.other:.2f}**, "
        f"with none **{reading.none:.2f}**: the right passage is worth {reading.other - reading.right:.2f} nats. "
        f"Before training: {reading.untrained_right:.2f}, {reading.untrained_other:.2f}, {reading.untrained_none:.2f}."
    )


def _numbers(report: Report) -> dict[str, Any]:
    return {
        "figures": to_json(report.found),
        "reading": asdict(report.reading),
        "loss_gap_right_vs_other": report.reading.other - report.reading.right,
        "prompts": dict(report.prompts),
        "rows": [
            {"study": study} | {key: value for key, value in asdict(entry).items() if key not in _LEFT_OUT}
            for study, entries in report.entries.items()
            for entry in entries
        ],
        "hardware": report.hardware,
        "seconds": round(report.seconds, 1),
        "settings": report.config.model_dump(mode="json"),
    }
