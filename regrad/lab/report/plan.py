"""All steps of the lab report, each with those that must be done before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from regrad.bank.config import BuildConfig
from regrad.lab.config import LabConfig, LabVariant
from regrad.lab.report.config import LabReportConfig
from regrad.lab.report.files import UNTIL
from regrad.lab.report.needs import makes, needs
from regrad.lab.report.studies import STUDIES, study
from regrad.settings import Settings, builtin_config, load_settings
from regrad.training.lora.config import AdaptersConfig, FinetuneConfig
from regrad.training.meta.config import MetaTrainConfig

FileJob = Literal["world", "memorised", "documents", "samples", "index", "raw"]
Job = FileJob | Literal["train", "finetune", "adapters", "bank", "eval", "measure"]

HARD: tuple[LabVariant, ...] = ("many", "long", "conflict", "unseen", "firms")
NOTES_PEOPLE = 3
"""People of one task record of the lab `many`: each has five notes of about 110 tokens."""
NOTES_READ = 4
"""Notes that the base's context holds."""
HALF_RANK = ("model.subspace.rank=16", "model.subspace.alpha=32")
"""Of a static LoRA under PRAG's adapters: the rest of the rank is for them."""
WARM = 300
"""Questions of a task warm-up."""


_FREE = {"cluster", "watch", "report"}


@dataclass(frozen=True)
class Step:
    """One piece of work, complete or absent. `alone`: it is timed, so nothing runs beside it. `streams`: Ray Data does
    it and wants a CPU for its readers beside that of its worker, so no second one of this kind runs beside it.

    `makes` is where its result goes, and `after` the names of the steps whose results it reads. `keys` are the settings
    that its result depends on; all, if none are named.
    """

    name: str
    job: Job
    settings: Settings
    makes: tuple[str, ...] = ()
    after: frozenset[str] = frozenset()
    alone: bool = False
    keys: tuple[str, ...] = ()

    @property
    def streams(self) -> bool:
        """See above."""
        return self.job in ("bank", "adapters")

    @property
    def content(self) -> dict[str, Any]:
        """What decides its result."""
        found = self.settings.model_dump(mode="json", exclude=_FREE)
        return {key: found[key] for key in self.keys or found}


def make_steps(config: LabReportConfig) -> list[Step]:
    """Everything; what comes first is begun first, as soon as what it needs is there."""
    steps = [
        *(*_files(config), *_made_of_files(config)),
        *(*_starts(config), *_further(config), *_rivals(config), *_banks(config)),
        *_studies(config),
    ]
    wired = [replace(step, after=step.after | _before(step, steps)) for step in steps]
    return [*wired, replace(_measuring(config), after=frozenset(step.name for step in wired))]


def _before(step: Step, steps: Sequence[Step]) -> frozenset[str]:
    """The steps that make what this one's settings name."""
    if not isinstance(step.settings, LabReportConfig):
        return frozenset(other.name for other in steps if other is not step and needs(step.settings, other.makes))
    return frozenset()


def _files(config: LabReportConfig) -> Iterator[Step]:
    out = config.output
    lab = LabConfig(
        output=f"{out}/lab",
        questions=config.questions,
        task_records=config.records,
        context_passages=5,
        augmented=5,
    )
    yield _step("lab", "world", lab)
    for name, keys in (("memorised", ("output", "questions")), ("documents", ("output", "questions", "documents"))):
        job: Any = name
        yield Step(name, job, config, makes=(f"{out}/{name}",), keys=keys)
    for variant in HARD:
        people = {"people_per_record": NOTES_PEOPLE} if variant == "many" else {}
        settings = LabConfig(
            output=f"{out}/sets/{variant}",
            variant=variant,
            questions=config.questions if variant == "firms" else config.hard_questions,
            task_records=config.records if variant == "firms" else min(config.records, 1500),
            **people,
        )
        yield _step(f"lab {variant}", "world", settings)


def _made_of_files(config: LabReportConfig) -> Iterator[Step]:
    out, files = config.output, frozenset(step.name for step in _files(config))
    yield Step("samples", "samples", config, (f"{out}/fine-tuning",), files, keys=("output", "records"))
    yield Step("indexes", "index", config, (f"{out}/index",), files, keys=("output", "documents"))
    yield Step("start raw", "raw", config, (f"{out}/starts/raw",), keys=("output",))


def corpora(config: LabReportConfig) -> dict[str, str]:
    """What is indexed, by the index's name."""
    out = config.output
    found = {"people": f"{out}/lab/corpus.jsonl", "memorised": f"{out}/memorised/corpus.jsonl"}
    found |= {variant: f"{out}/sets/{variant}/corpus.jsonl" for variant in HARD}
    found |= {f"documents-{count}": f"{out}/documents/{UNTIL}{count}.jsonl" for count in config.documents}
    return found


def _starts(config: LabReportConfig) -> Iterator[Step]:
    for seed in config.seeds:
        yield _train(config, f"regrad-{seed}", ["lab"], seed, config.steps.regrad)
    for seed in config.seeds:
        icl = ["shape.in_prompt=true", "shape.questions=6"]
        yield _train(config, f"icl-{seed}", ["lab"], seed, config.steps.icl, icl)


def _further(config: LabReportConfig) -> Iterator[Step]:
    """What goes on from the starts that were trained on people.

    In the prompt of `notes-icl` go as many notes as the context holds; the few tasks that are longer are left out.
    """
    icl = ["shape.in_prompt=true", "shape.questions=4", f"shape.k={NOTES_READ}", "shape.bad_tasks=skip"]
    for seed in config.seeds:
        steps, people, notes = config.steps, _from(config, f"regrad-{seed}"), _from(config, f"notes-{seed}")
        yield _train(config, f"notes-{seed}", ["sets/many"], seed, steps.notes, people)
        yield _train(config, f"notes-icl-{seed}", ["sets/many"], seed, steps.notes_icl, [*notes, *icl])
        yield _train(config, f"mixed-{seed}", ["lab", "sets/firms"], seed, steps.mixed, people)
        yield _train(config, f"continued-{seed}", ["sets/firms"], seed, steps.continued, people)


def _from(config: LabReportConfig, name: str) -> list[str]:
    return [f"start_from={config.output}/starts/{name}", "optimizer.lr=2.0e-3", "optimizer.step_size_lr=1.0e-2"]


def _train(
    config: LabReportConfig, name: str, places: Sequence[str], seed: int, steps: int, changes: Sequence[str] = ()
) -> Step:
    """One meta-training with the lab's settings, on the tasks of one lab or several."""
    tasks = [f"{config.output}/{place}/tasks.jsonl" for place in places]
    values = [f"tasks={tasks}", "dev=null", f"output={config.output}/starts/{name}"]
    values += [f"seed={seed}", f"optimizer.steps={steps}", "cluster.workers=1"]
    return _step(f"start {name}", "train", load_settings(MetaTrainConfig, _file("train-lab"), [*values, *changes]))


def _rivals(config: LabReportConfig) -> Iterator[Step]:
    lab, steps = f"{config.output}/lab", config.steps
    epochs = f"optimizer.epochs={steps.epochs}"
    many = [f"k={NOTES_READ}", "max_tokens=512", "optimizer.batch_size=8"]
    for name, of, changes in (("ft-rag-notes", "many", many), ("ft-rag", "people", []), ("ft-rag-firms", "firms", [])):
        yield _tuned(config, name, of, ["objective=questions-with-passages", *changes])
    yield _tuned(config, "ft-direct", "people", ["objective=questions"])
    yield _finetune(config, "instruction-cpt", ["objective=instruction", f"corpus={lab}/augmented.jsonl", epochs])
    for seed in config.seeds:
        yield _finetune(config, f"cpt-{seed}", [f"corpus={lab}/corpus.jsonl", epochs, f"seed={seed}"])
        yield from _injections(config, seed, epochs)
    yield _adapters(config, "prag")
    for name, examples in (("prag-warm", [f"max_examples={WARM}"]), ("ft-prag", [])):
        static = _tuned(config, f"{name}-static", "people", ["objective=questions", *HALF_RANK, *examples])
        yield static
        yield _adapters(config, name, [f"static={static.makes[0]}"])


def _adapters(config: LabReportConfig, name: str, changes: Sequence[str] = ()) -> Step:
    """A bank of a LoRA for each passage."""
    values = [f"corpus={config.output}/lab/augmented.jsonl", f"bank.uri={config.output}/banks/{name}"]
    values += [f"adapter.epochs={config.steps.adapters}", "cluster.workers=1"]
    return _step(
        f"adapters {name}", "adapters", load_settings(AdaptersConfig, _file("adapters-lab"), [*values, *changes])
    )


def _injections(config: LabReportConfig, seed: int, epochs: str) -> Iterator[Step]:
    """Continual training of one LoRA: each time on the documents that came since, from where it was before."""
    before: list[str] = []
    for count in config.documents:
        corpus = [f"corpus={config.output}/documents/{count}.jsonl", epochs, f"seed={seed}"]
        step = _finetune(config, f"cpt-documents-{count}-{seed}", [*corpus, *before])
        before = [f"start_from={step.makes[0]}"]
        yield step


def _tuned(config: LabReportConfig, name: str, of: str, changes: Sequence[str]) -> Step:
    """Fine-tuned on tasks."""
    tasks = [f"tasks={config.output}/fine-tuning/{of}.jsonl", "optimizer.epochs=null"]
    return _finetune(config, name, [*tasks, f"optimizer.steps={config.steps.fine_tuning}", *changes])


def _finetune(config: LabReportConfig, name: str, changes: Sequence[str]) -> Step:
    values = [f"output={config.output}/adapters/{name}", "cluster.workers=1"]
    settings = load_settings(FinetuneConfig, _file("finetune-lab"), [*values, *changes])
    return _step(f"adapter {name}", "finetune", settings)


def _banks(config: LabReportConfig) -> Iterator[Step]:
    for seed in config.seeds:
        yield _bank(config, f"regrad-{seed}", "documents/all.jsonl")
        yield _bank(config, f"icl-{seed}", "lab/corpus.jsonl")
        yield _bank(config, f"notes-icl-{seed}", "sets/many/corpus.jsonl", "int8")
    yield _bank(config, "raw", "lab/corpus.jsonl")


def _bank(config: LabReportConfig, name: str, corpus: str, codec: str = "float32") -> Step:
    out = config.output
    values = [f"meta_init={out}/starts/{name}", f"corpus={out}/{corpus}", f"bank.uri={out}/banks/{name}"]
    settings = load_settings(BuildConfig, _file("build-lab"), [*values, f"bank.codec={codec}", "cluster.workers=1"])
    return _step(f"bank {name}", "bank", settings)


def _studies(config: LabReportConfig) -> Iterator[Step]:
    for name in STUDIES:
        yield _step(f"study {name}", "eval", study(name, config))


def _measuring(config: LabReportConfig) -> Step:
    return Step("measure", "measure", config, alone=True, keys=("output", "seeds", "timed", "batched"))


def _step(name: str, job: Job, settings: Settings) -> Step:
    return Step(name, job, settings, makes=(makes(settings),))


def _file(name: str) -> Any:
    return builtin_config(f"jobs/{name}.yaml")
