"""Everything that the report runs, in order: each step with the steps that it needs and the place that it makes.

A step begins as soon as what it needs is there. All places are below `output`: `starts/` has MetaInits, `adapters/`
LoRAs, `banks/` gradients and PRAG's adapters, `studies/` the records of the evaluations.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from regrad.settings import builtin_config, read_yaml
from studies.lab_report.config import LabReportConfig
from studies.lab_report.files import (
    HARD,
    write_documents,
    write_indexes,
    write_memorised,
    write_raw_start,
    write_samples,
)
from studies.lab_report.measurements import measure
from studies.step import Command, Function, Step

PLACES = {"lab": "lab"} | {f"lab {variant}": f"sets/{variant}" for variant in HARD}
"""Where each lab is written, by its step."""
NOTES_PEOPLE = 3
"""People of one task record of the lab `many`: each has five notes of about 110 tokens."""
NOTES_READ = 4
"""Notes that the base's context holds."""
HALF_RANK = ("model.subspace.rank=16", "model.subspace.alpha=32")
"""Of a static LoRA under PRAG's adapters."""
ONE_WORKER = ("cluster.workers=1", "cluster.cpus_per_worker=0.25")
"""Of each step. It counts as a quarter of a CPU: steps share the machine, and what reads a corpus wants a whole one."""
WARM = 300
"""Questions of a task warm-up."""
STUDIES = ("methods", "passages", "merges", "drift", "general", "domains", "hard", "notes")
"""The paper's studies: files of settings for `regrad eval` (evals/*.yaml), fitted to one report by `changes`."""
ONE_SEED = ("hard",)
"""Studies that no claim rests on."""
_DOCUMENTS = LabReportConfig.model_fields["documents"].default
"""Numbers in the files; a report with fewer or other ones puts its own there, the last for the last."""
_PLACE = "runs/lab-report"
_COUNT = re.compile(r"\bdocuments-(\d+)")


def make_steps(config: LabReportConfig) -> list[Step]:
    """All steps; what comes first is begun first."""
    steps = [
        *_labs(config),
        *_files(config),
        *_starts(config),
        *_continued_starts(config),
        *_baselines(config),
        *_banks(config),
        *_evaluations(config),
    ]
    return [*steps, _measuring(config, steps)]


def _labs(config: LabReportConfig) -> Iterator[Step]:
    yield _lab(config, "lab", config.questions, config.records, "context_passages=5")
    for variant in HARD:
        people = [f"people_per_record={NOTES_PEOPLE}"] if variant == "many" else []
        full = variant == "firms"
        questions = config.questions if full else config.hard_questions
        records = config.records if full else min(config.records, 1500)
        yield _lab(config, f"lab {variant}", questions, records, f"variant={variant}", "augmented=0", *people)


def _lab(config: LabReportConfig, name: str, questions: int, records: int, *changed: str) -> Step:
    values = [f"people={config.people}", f"questions={questions}", f"task_records={records}", *changed]
    return _command(config, name, "lab world", PLACES[name], (), values)


def _files(config: LabReportConfig) -> Iterator[Step]:
    out = config.output
    yield Step("memorised", Function(write_memorised, config, ("output", "people", "questions")), f"{out}/memorised")
    dated = Function(write_documents, config, ("output", "people", "questions", "documents"))
    yield Step("documents", dated, f"{out}/documents")
    samples = Function(write_samples, config, ("output", "records"))
    yield Step("samples", samples, f"{out}/fine-tuning", frozenset({"lab", "lab many", "lab firms"}))
    indexes = Function(write_indexes, config, ("output", "documents"))
    needs = {*PLACES, "memorised", "documents"}
    yield Step("indexes", indexes, f"{out}/index", frozenset(needs))
    yield Step("start raw", Function(write_raw_start, config, ("output",)), f"{out}/starts/raw")


def _starts(config: LabReportConfig) -> Iterator[Step]:
    for seed in config.seeds:
        yield _start(config, f"regrad-{seed}", seed, config.steps.regrad, ["lab"])
    for seed in config.seeds:
        icl = ["shape.in_prompt=true", "shape.questions=6"]
        yield _start(config, f"icl-{seed}", seed, config.steps.icl, ["lab"], changed=icl)


def _continued_starts(config: LabReportConfig) -> Iterator[Step]:
    """What goes on from the starts that were trained on people.

    In the prompt of `notes-icl` go as many notes as the context holds; the few tasks that are longer are left out.
    """
    icl = ["shape.in_prompt=true", "shape.questions=4", f"shape.k={NOTES_READ}", "shape.bad_tasks=skip"]
    for seed in config.seeds:
        steps = config.steps
        people = f"regrad-{seed}"
        yield _start(config, f"notes-{seed}", seed, steps.notes, ["lab many"], people)
        yield _start(config, f"notes-icl-{seed}", seed, steps.notes_icl, ["lab many"], f"notes-{seed}", icl)
        yield _start(config, f"mixed-{seed}", seed, steps.mixed, ["lab", "lab firms"], people)
        yield _start(config, f"continued-{seed}", seed, steps.continued, ["lab firms"], people)


def _start(
    config: LabReportConfig,
    name: str,
    seed: int,
    steps: int,
    labs: Sequence[str],
    start_from: str | None = None,
    changed: Sequence[str] = (),
) -> Step:
    """One meta-training on the tasks of one lab or several."""
    tasks = [f"{config.output}/{PLACES[lab]}/tasks.jsonl" for lab in labs]
    values = [f"tasks={tasks}", "dev=null", f"seed={seed}", f"optimizer.steps={steps}"]
    needs = list(labs)
    if start_from is not None:
        values += [f"start_from={config.output}/starts/{start_from}"]
        values += ["optimizer.lr=2.0e-3", "optimizer.step_size_lr=1.0e-2"]
        needs.append(f"start {start_from}")
    return _command(config, f"start {name}", "train", f"starts/{name}", needs, [*values, *changed])


def _baselines(config: LabReportConfig) -> Iterator[Step]:
    lab = f"{config.output}/lab"
    epochs = f"optimizer.epochs={config.steps.epochs}"
    rag = "objective=questions-with-passages"
    direct = "objective=questions"
    yield _tuned(config, "ft-rag-notes", "many", [rag, f"k={NOTES_READ}", "max_tokens=512", "optimizer.batch_size=8"])
    yield _tuned(config, "ft-rag", "people", [rag])
    yield _tuned(config, "ft-rag-firms", "firms", [rag])
    yield _tuned(config, "ft-direct", "people", [direct])
    instructions = ["objective=instruction", f"corpus={lab}/augmented.jsonl", epochs]
    yield _adapter(config, "instruction-cpt", ["lab"], instructions)
    for seed in config.seeds:
        yield _adapter(config, f"cpt-{seed}", ["lab"], [f"corpus={lab}/corpus.jsonl", epochs, f"seed={seed}"])
        yield from _injections(config, seed, epochs)
    yield _prag(config, "prag")
    for name, examples in (("prag-warm", [f"max_examples={WARM}"]), ("ft-prag", [])):
        yield _tuned(config, f"{name}-static", "people", [direct, *HALF_RANK, *examples])
        yield _prag(config, name, static=f"{name}-static")


def _injections(config: LabReportConfig, seed: int, epochs: str) -> Iterator[Step]:
    """Continual training of one LoRA: each time on the documents that came since, from where it was before."""
    needs = ["documents"]
    before = list[str]()
    for count in config.documents:
        name = f"cpt-documents-{count}-{seed}"
        corpus = f"corpus={config.output}/documents/{count}.jsonl"
        yield _adapter(config, name, needs, [corpus, epochs, f"seed={seed}", *before])
        needs = ["documents", f"adapter {name}"]
        before = [f"start_from={config.output}/adapters/{name}"]


def _tuned(config: LabReportConfig, name: str, of: str, changed: Sequence[str]) -> Step:
    """A LoRA that is fine-tuned on tasks."""
    values = [f"tasks={config.output}/fine-tuning/{of}.jsonl", "optimizer.epochs=null"]
    values += [f"optimizer.steps={config.steps.fine_tuning}", *changed]
    return _adapter(config, name, ["samples"], values)


def _adapter(config: LabReportConfig, name: str, needs: Iterable[str], changed: Sequence[str]) -> Step:
    """One LoRA for all questions."""
    return _command(config, f"adapter {name}", "finetune", f"adapters/{name}", needs, changed)


def _prag(config: LabReportConfig, name: str, static: str | None = None) -> Step:
    """A bank of a LoRA for each passage."""
    values = [f"corpus={config.output}/lab/augmented.jsonl", f"adapter.epochs={config.steps.adapters}"]
    needs = ["lab"]
    if static is not None:
        values.append(f"static={config.output}/adapters/{static}")
        needs.append(f"adapter {static}")
    return _command(config, f"adapters {name}", "adapters", f"banks/{name}", needs, values)


def _banks(config: LabReportConfig) -> Iterator[Step]:
    for seed in config.seeds:
        yield _bank(config, f"regrad-{seed}", "documents", "documents/all.jsonl")
        yield _bank(config, f"icl-{seed}", "lab", "lab/corpus.jsonl")
        yield _bank(config, f"notes-icl-{seed}", "lab many", "sets/many/corpus.jsonl", "int8")
    yield _bank(config, "raw", "lab", "lab/corpus.jsonl")


def _bank(config: LabReportConfig, name: str, of: str, corpus: str, codec: str = "float32") -> Step:
    """A bank of the gradients that the start of the same name has of a corpus."""
    values = [f"meta_init={config.output}/starts/{name}", f"corpus={config.output}/{corpus}", f"bank.codec={codec}"]
    return _command(config, f"bank {name}", "build", f"banks/{name}", [of, f"start {name}"], values)


def _evaluations(config: LabReportConfig) -> Iterator[Step]:
    def each(*kinds: str) -> list[str]:
        return [f"{kind}-{seed}" for kind in kinds for seed in config.seeds]

    ours = each("start regrad", "bank regrad")
    tuned = [f"adapter {name}" for name in ("ft-direct", "instruction-cpt")]
    injected = each(*(f"adapter cpt-documents-{count}" for count in config.documents))
    prags = [f"adapters {name}" for name in ("prag", "prag-warm", "ft-prag")]
    prags += [f"adapter {name}-static" for name in ("prag-warm", "ft-prag")]
    icl = each("start icl", "bank icl")
    baselines = ["adapter ft-rag", *tuned, *each("adapter cpt"), *prags]
    yield _evaluation(config, "methods", ["lab", "start raw", "bank raw", *ours, *icl, *baselines])
    yield _evaluation(config, "passages", ["lab", "adapter ft-rag", *ours, *icl])
    yield _evaluation(config, "merges", ["lab", *ours])
    yield _evaluation(config, "drift", ["documents", *ours, *injected])
    known = ["memorised", "start raw", "adapter ft-rag", *tuned, *injected]
    yield _evaluation(config, "general", [*known, *each("start regrad")])
    firms = each("start regrad", "start mixed", "start continued")
    yield _evaluation(config, "domains", ["lab", "lab firms", "adapter ft-rag-firms", *firms])
    hard = [f"lab {variant}" for variant in ("many", "long", "conflict", "unseen")]
    yield _evaluation(config, "hard", [*hard, f"start regrad-{config.seeds[0]}"])
    notes = each("start notes", "start notes-icl", "bank notes-icl")
    yield _evaluation(config, "notes", ["lab many", "adapter ft-rag-notes", *notes])


def _evaluation(config: LabReportConfig, name: str, needs: Sequence[str]) -> Step:
    work = Command("eval", path_of(name), (*changes(name, config), *ONE_WORKER))
    return Step(f"study {name}", work, f"{config.output}/studies/{name}", frozenset({"indexes", *needs}))


def _measuring(config: LabReportConfig, steps: Sequence[Step]) -> Step:
    """After all others, as it is timed."""
    work = Function(measure, config, ("output", "seeds", "timed", "batched"))
    return Step("measure", work, config.output, frozenset(step.name for step in steps), alone=True)


_FILES = {
    "lab world": "lab-world",
    "train": "train-lab",
    "finetune": "finetune-lab",
    "adapters": "adapters-lab",
    "build": "build-lab",
}
"""The settings that each verb's steps begin with."""


def _command(
    config: LabReportConfig, name: str, verb: str, place: str, needs: Iterable[str], changed: Sequence[str]
) -> Step:
    makes = f"{config.output}/{place}"
    values = [f"{'bank.uri' if verb in ('adapters', 'build') else 'output'}={makes}"]
    if verb != "lab world":
        values += ONE_WORKER
    path: Path = builtin_config(f"jobs/{_FILES[verb]}.yaml")
    return Step(name, Command(verb, path, (*values, *changed)), makes, frozenset(needs))


def path_of(study: str) -> Path:
    """The file of a study."""
    return Path(__file__).parent / "evals" / f"{study}.yaml"


def reference(study: str) -> str:
    """The method that a study's others are compared with."""
    return str(read_yaml(path_of(study))["compare_to"])


def changes(study: str, config: LabReportConfig) -> list[str]:
    """What the report changes in a study's file, as overrides: places, numbers of documents, seeds."""
    data = read_yaml(path_of(study))
    counts = dict(zip(_DOCUMENTS[-len(config.documents) :], config.documents, strict=True))

    def fit(text: str) -> str:
        text = _COUNT.sub(lambda found: f"documents-{counts[int(found[1])]}", text)
        moved = text.startswith(_PLACE) and config.output != os.path.abspath(_PLACE)
        return f"{config.output}{text.removeprefix(_PLACE)}" if moved else text

    fitted = {key: [one for one in data[key] if _is_wanted(one, counts)] for key in ("sets", "methods")}
    fitted = _each_text({**data, **fitted}, fit)
    fitted["seeds"] = list(config.seeds[:1] if study in ONE_SEED else config.seeds)
    return [f"{key}={json.dumps(value)}" for key, value in fitted.items() if value != data[key]]


def _is_wanted(one: Any, counts: Mapping[int, int]) -> bool:
    found = _COUNT.search(one["name"]) if isinstance(one, dict) else None
    return found is None or int(found[1]) in counts


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(inner, change) for key, inner in value.items()}
    return [_each_text(inner, change) for inner in value] if isinstance(value, list) else value
