"""All steps of the lab report, in stages; the steps of a stage need nothing of each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from regrad.config import (
    AdaptersConfig,
    BuildConfig,
    FinetuneConfig,
    LabConfig,
    LabReportConfig,
    MetaTrainConfig,
    builtin_config,
)
from regrad.config.lab import LabVariant
from regrad.lab.report.studies import STUDIES, study
from regrad.settings import Settings, load_settings

FileJob = Literal["world", "memorised", "documents", "samples", "index", "raw"]
Job = FileJob | Literal["train", "finetune", "adapters", "bank", "eval", "measure"]

HARD: tuple[LabVariant, ...] = ("many", "long", "conflict", "unseen", "firms")
NOTES_PEOPLE = 3
"""People of one task record of the lab `many`: each has five notes of about 110 tokens."""
NOTES_READ = 4
"""Notes that the base's context holds."""


_FREE = {"cluster", "watch", "report"}


@dataclass(frozen=True)
class Step:
    """One piece of work, complete or absent. `alone`: it takes all workers, so nothing runs beside it.

    `keys` are the settings that its result depends on; all, if none are named.
    """

    name: str
    job: Job
    settings: Settings
    alone: bool = False
    keys: tuple[str, ...] = ()

    @property
    def content(self) -> dict[str, Any]:
        """What decides its result."""
        found = self.settings.model_dump(mode="json", exclude=_FREE)
        return {key: found[key] for key in self.keys or found}


@dataclass(frozen=True)
class Stage:
    """Steps that may run side by side."""

    title: str
    steps: tuple[Step, ...]


def make_stages(config: LabReportConfig) -> list[Stage]:
    """Everything, in order."""
    return [
        Stage("the lab's files", tuple(_files(config))),
        Stage("indexes", tuple(_made_of_files(config))),
        Stage("meta-training, and training the rivals", (*_starts(config), *_rivals(config))),
        Stage("training further, and banks", (*_further(config), *_banks(config))),
        Stage("notes in the prompt", tuple(_notes_icl(config))),
        Stage("banks of notes", tuple(_note_banks(config))),
        Stage("questions", tuple(_studies(config))),
        Stage("latency, batches, and the base's weights", (_measuring(config),)),
    ]


def _files(config: LabReportConfig) -> Iterator[Step]:
    out = config.output
    lab = LabConfig(
        output=f"{out}/lab",
        questions=config.questions,
        task_records=config.records,
        context_passages=5,
        augmented=5,
    )
    yield Step("lab", "world", lab)
    yield Step("memorised", "memorised", config, keys=("output", "questions"))
    yield Step("documents", "documents", config, keys=("output", "documents"))
    for variant in HARD:
        people = {"people_per_record": NOTES_PEOPLE} if variant == "many" else {}
        settings = LabConfig(
            output=f"{out}/sets/{variant}",
            variant=variant,
            questions=config.questions if variant == "firms" else config.hard_questions,
            task_records=config.records if variant == "firms" else min(config.records, 1500),
            **people,
        )
        yield Step(f"lab {variant}", "world", settings)


def _made_of_files(config: LabReportConfig) -> Iterator[Step]:
    yield Step("indexes", "index", config, keys=("output", "documents"))
    yield Step("samples", "samples", config, keys=("output", "records"))


def corpora(config: LabReportConfig) -> dict[str, str]:
    """What is indexed, by the index's name."""
    out = config.output
    found = {"people": f"{out}/lab/corpus.jsonl", "memorised": f"{out}/memorised/corpus.jsonl"}
    found |= {variant: f"{out}/sets/{variant}/corpus.jsonl" for variant in HARD}
    found |= {f"documents-{count}": f"{out}/documents/{count}.jsonl" for count in config.documents}
    return found


def _starts(config: LabReportConfig) -> Iterator[Step]:
    for seed in config.seeds:
        yield _train(config, f"regrad-{seed}", ["lab"], seed, config.steps.regrad)
    for seed in config.seeds:
        icl = ["shape.in_prompt=true", "shape.questions=6"]
        yield _train(config, f"icl-{seed}", ["lab"], seed, config.steps.icl, icl)
    yield Step("start raw", "raw", config, keys=("output",))


def _further(config: LabReportConfig) -> Iterator[Step]:
    """What goes on from the starts that were trained on people."""
    for seed in config.seeds:
        start, steps = _from(config, f"regrad-{seed}"), config.steps
        yield _train(config, f"notes-{seed}", ["sets/many"], seed, steps.notes, start)
        yield _train(config, f"mixed-{seed}", ["lab", "sets/firms"], seed, steps.mixed, start)
        yield _train(config, f"continued-{seed}", ["sets/firms"], seed, steps.continued, start)


def _notes_icl(config: LabReportConfig) -> Iterator[Step]:
    """In the prompt go as many notes as the context holds; the few tasks that are longer are left out."""
    icl = ["shape.in_prompt=true", "shape.questions=4", f"shape.k={NOTES_READ}", "shape.bad_tasks=skip"]
    for seed in config.seeds:
        start = _from(config, f"notes-{seed}")
        yield _train(config, f"notes-icl-{seed}", ["sets/many"], seed, config.steps.notes_icl, [*start, *icl])


def _from(config: LabReportConfig, name: str) -> list[str]:
    return [f"start_from={config.output}/starts/{name}", "optimizer.lr=2.0e-3", "optimizer.step_size_lr=1.0e-2"]


def _train(
    config: LabReportConfig, name: str, places: Sequence[str], seed: int, steps: int, changes: Sequence[str] = ()
) -> Step:
    """One meta-training with the lab's settings, on the tasks of one lab or several."""
    tasks = [f"{config.output}/{place}/tasks.jsonl" for place in places]
    values = [
        *(f"tasks={tasks}", "dev=null", f"output={config.output}/starts/{name}"),
        *(f"seed={seed}", f"optimizer.steps={steps}", f"checkpoints.every={max(100, steps // 2)}"),
        *("cluster.workers=1", "watch.tensorboard=false", "watch.every=200"),
    ]
    return Step(f"start {name}", "train", load_settings(MetaTrainConfig, _file("train-lab"), [*values, *changes]))


def _rivals(config: LabReportConfig) -> Iterator[Step]:
    lab, steps = f"{config.output}/lab", config.steps
    epochs = f"optimizer.epochs={steps.epochs}"
    many = [f"k={NOTES_READ}", "max_tokens=512", "optimizer.batch_size=8"]
    for name, of, changes in (("ft-rag", "people", []), ("ft-rag-firms", "firms", []), ("ft-rag-notes", "many", many)):
        yield _tuned(config, name, of, ["objective=questions-with-passages", *changes])
    yield _tuned(config, "ft-direct", "people", ["objective=questions"])
    yield _finetune(config, "instruction-cpt", ["objective=instruction", f"corpus={lab}/augmented.jsonl", epochs])
    for count in config.documents:
        for seed in config.seeds:
            corpus = f"corpus={config.output}/documents/{count}.jsonl"
            yield _finetune(config, f"cpt-documents-{count}-{seed}", [corpus, epochs, f"seed={seed}"])
    values = [f"corpus={lab}/augmented.jsonl", f"bank.uri={config.output}/banks/prag", "cluster.workers=1"]
    adapters = load_settings(AdaptersConfig, _file("adapters-lab"), [*values, f"adapter.epochs={steps.adapters}"])
    yield Step("adapters prag", "adapters", adapters)


def _tuned(config: LabReportConfig, name: str, of: str, changes: Sequence[str]) -> Step:
    """Fine-tuned on tasks."""
    tasks = [f"tasks={config.output}/fine-tuning/{of}.jsonl", "optimizer.epochs=null"]
    return _finetune(config, name, [*tasks, f"optimizer.steps={config.steps.fine_tuning}", *changes])


def _finetune(config: LabReportConfig, name: str, changes: Sequence[str]) -> Step:
    values = [f"output={config.output}/adapters/{name}", "cluster.workers=1", "watch.tensorboard=false"]
    settings = load_settings(FinetuneConfig, _file("finetune-lab"), [*values, *changes])
    return Step(f"adapter {name}", "finetune", settings)


def _banks(config: LabReportConfig) -> Iterator[Step]:
    for seed in config.seeds:
        yield _bank(config, f"regrad-{seed}", "lab")
        yield _bank(config, f"icl-{seed}", "lab")
    yield _bank(config, "raw", "lab")


def _note_banks(config: LabReportConfig) -> Iterator[Step]:
    for seed in config.seeds:
        yield _bank(config, f"notes-icl-{seed}", "sets/many", "int8")


def _bank(config: LabReportConfig, name: str, place: str, codec: str = "float32") -> Step:
    out = config.output
    values = [f"meta_init={out}/starts/{name}", f"corpus={out}/{place}/corpus.jsonl", f"bank.uri={out}/banks/{name}"]
    settings = load_settings(BuildConfig, _file("build-lab"), [*values, f"bank.codec={codec}", "cluster.workers=1"])
    return Step(f"bank {name}", "bank", settings)


def _studies(config: LabReportConfig) -> Iterator[Step]:
    for name in STUDIES:
        yield Step(f"study {name}", "eval", study(name, config), alone=True)


def _measuring(config: LabReportConfig) -> Step:
    return Step("measure", "measure", config, alone=True, keys=("output", "seeds", "timed", "batched"))


def _file(name: str) -> Any:
    return builtin_config(f"jobs/{name}.yaml")
