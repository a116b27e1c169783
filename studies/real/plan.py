"""Everything that the real study runs, in order: `regrad` commands and a few functions, each with what it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from regrad.meta_init import MetaInit, random_meta_init
from regrad.models.known import get_model
from regrad.models.loading import load_language_model
from regrad.settings import load_settings, read_yaml
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.meta.config import MetaTrainConfig
from studies.real.config import RealConfig, RetrieverName
from studies.real.reading import measure_reading
from studies.real.sets import HELD, MULTI_HOP, OTHER_QUESTIONS, SAME_ARTICLE, TRAINING, write_sets
from studies.step import Command, Function, Step

KNOWN = "smollm2-135m"
ENCODER = "all-minilm-l6-v2"
BY_RETRIEVER: dict[RetrieverName, str] = {
    "bm25": "retrieved",
    "dense": "retrieved-dense",
    "fused": "retrieved-fused",
}
"""The evaluation of each retriever."""
STUDIES = ("dev", "gold", "hops", *BY_RETRIEVER.values(), "controls", "prag", "codecs")
"""The evaluations: files of settings for `regrad eval` (evals/*.yaml; `hops` is `gold` with several passages)."""
CODECS = ("bf16", "int8", "int4")
ONE_WORKER = ("cluster.workers=1",)
_HERE = Path(__file__).parent
_MOST_HOPS = 3
_QUESTIONS = 4
"""Of a task, in a step of meta-training (train.yaml) as in one of fine-tuning."""


def make_steps(config: RealConfig) -> list[Step]:
    """All steps; what comes first is begun first."""
    steps = [*_files(config), *_starts(config), *_rivals(config), *_banks(config), *_prag(config)]
    steps += _evaluations(config)
    return [*steps, _reading(config)]


def _files(config: RealConfig) -> Iterator[Step]:
    yield Step("model", Function(_model, config, ("model",)), config.model)
    keys = ("output", "data", "sets", "questions", "dev_questions")
    yield Step("sets", Function(write_sets, config, keys), f"{config.output}/sets")
    for name, of in (("train", TRAINING), ("held", HELD)):
        path = f"questions.path={config.output}/sets/{of}/questions.jsonl"
        yield _command(config, f"tasks {name}", "tasks", f"tasks/{name}", ["sets"], [path])
    if "dense" in config.retrievers:
        yield Step("encoder", Function(_encoder, config, ("encoder",)), config.encoder)
    for name in config.retrieved_sets:
        for retriever in config.retrievers:
            yield _index(config, name, retriever)


def _index(config: RealConfig, name: str, retriever: RetrieverName) -> Step:
    place = f"index/{retriever}/{name}"
    if retriever == "fused":
        joined = [f"{config.output}/index/{other}/{name}" for other in ("bm25", "dense")]
        needs = [f"index bm25 {name}", f"index dense {name}"]
        return _command(config, f"index fused {name}", "index", place, needs, ["corpus=null", _fuse(joined)])
    changed, needs = [f"corpus={config.output}/sets/{name}/corpus.jsonl"], ["sets"]
    if retriever == "dense":
        changed, needs = [*changed, f"dense.encoder.path={config.encoder}", *ONE_WORKER], ["sets", "encoder"]
    return _command(config, f"index {retriever} {name}", "index", place, needs, changed)


def _fuse(indexes: Sequence[str]) -> str:
    return f"fuse.indexes={json.dumps(list(indexes))}"


def _starts(config: RealConfig) -> Iterator[Step]:
    yield Step("start raw", Function(_raw, config, ("output", "model")), _start(config, "raw"), frozenset({"model"}))
    for seed in config.seeds:
        plain, icl = f"regrad-{seed}", f"icl-{seed}"
        first = seed == config.seeds[0]
        if config.start and first:
            yield _ready(config, plain, "start")
        else:
            yield _training(config, plain, seed, config.steps.regrad)
        if config.start_icl and first:
            yield _ready(config, icl, "start_icl")
            continue
        if not _has_icl(config):
            continue
        later = [f"start_from={_start(config, plain)}", "optimizer.lr=5.0e-4", "optimizer.step_size_lr=1.0e-2"]
        yield _training(config, icl, seed, config.steps.icl, [*later, "shape.in_prompt=true"], [f"start {plain}"])


def _ready(config: RealConfig, name: str, key: str) -> Step:
    take = partial(_given, uri=getattr(config, key), name=name)
    return Step(f"start {name}", Function(take, config, ("output", "model", key)), _start(config, name))


def _training(
    config: RealConfig, name: str, seed: int, steps: int, changed: Sequence[str] = (), needs: Sequence[str] = ()
) -> Step:
    values = [
        f"tasks={config.output}/tasks/train/train.jsonl",
        f"dev={config.output}/tasks/held/train.jsonl",
        f"seed={seed}",
        f"optimizer.steps={steps}",
        f"optimizer.batch_size={config.batch_size}",
        *changed,
    ]
    needed = ["model", "tasks train", "tasks held", *needs]
    return _command(config, f"start {name}", "train", f"starts/{name}", needed, values)


def _rivals(config: RealConfig) -> Iterator[Step]:
    trained = {
        "ft-direct": ("questions", config.steps.ft_direct, _QUESTIONS),
        # The questions of a passage together, so that it is read once for all of them.
        "ft-rag": ("questions-with-passages", config.steps.ft_rag, 1),
    }
    if config.ft_rag:
        del trained["ft-rag"]
        yield Step("adapter ft-rag", Function(_ready_lora, config, ("output", "ft_rag")), ft_rag_place(config))
    for name, (objective, steps, size) in trained.items():
        if not steps:
            continue
        batch = size * config.batch_size
        values = [f"tasks={config.output}/tasks/train/train.jsonl", f"objective={objective}"]
        # What is drawn once, and no more, is read: the tokens of 82,000 questions take minutes.
        values += [f"optimizer.steps={steps}", f"optimizer.batch_size={batch}", f"max_examples={steps * batch}"]
        if size == 1:
            values.append(f"questions_together={_QUESTIONS}")
        yield _command(config, f"adapter {name}", "finetune", f"adapters/{name}", ["model", "tasks train"], values)
    if not config.steps.cpt_epochs:
        return
    corpus = ["objective=passages", f"corpus={config.output}/sets/squad_dev/asked.jsonl", "optimizer.batch_size=8"]
    epochs = [f"optimizer.epochs={config.steps.cpt_epochs}", "tasks=null"]
    yield _command(config, "adapter cpt", "finetune", "adapters/cpt", ["model", "sets"], [*corpus, *epochs])


def _banks(config: RealConfig) -> Iterator[Step]:
    for seed in config.seeds if _has_icl(config) else ():
        for name in config.sets:
            yield _bank(config, f"icl-{name}-{seed}", f"icl-{seed}", name, "bf16")
    for codec in CODECS:
        yield _bank(config, codec, f"regrad-{config.seeds[0]}", "squad_dev", codec)


def _bank(config: RealConfig, bank: str, start: str, of: str, codec: str) -> Step:
    values = [
        f"meta_init={_start(config, start)}",
        f"corpus={config.output}/sets/{of}/asked.jsonl",
        f"bank.codec={codec}",
    ]
    return _command(config, f"bank {bank}", "build", f"banks/{bank}", ["sets", f"start {start}"], values)


def _prag(config: RealConfig) -> Iterator[Step]:
    """A LoRA for each passage that is asked about, trained as PRAG does, with questions that people wrote."""
    if not config.steps.prag_epochs:
        return
    # PRAG's base writes its questions itself; this one wrote none that could be read (docs/real.md).
    tasks = f"tasks={config.output}/sets/squad_dev/{OTHER_QUESTIONS}.jsonl"
    yield _command(config, "augment prag", "augment", "prag", ["sets"], [tasks])
    model = _model_settings(config) | {"subspace": {"layers": "all"}}  # as PRAG's; its rank is the adapter's
    values = [f"model={json.dumps(model)}", f"corpus={config.output}/prag"]
    values.append(f"adapter.epochs={config.steps.prag_epochs}")
    yield _command(config, "bank prag", "adapters", "banks/prag", ["model", "augment prag"], values)


def _has_icl(config: RealConfig) -> bool:
    """Whether ReGrad + ICL is among the rows."""
    return bool(config.start_icl or config.steps.icl)


def rows_left_out(config: RealConfig) -> set[str]:
    """The names of rows that nothing is trained for."""
    steps = config.steps
    trained = {
        "regrad+icl": _has_icl(config),
        "ft-direct": bool(steps.ft_direct),
        "ft-rag": bool(config.ft_rag or steps.ft_rag),
        "cpt": bool(steps.cpt_epochs),
        "prag": bool(steps.prag_epochs),
        "prag+icl": bool(steps.prag_epochs),
    }
    return {name for name, there in trained.items() if not there}


def _evaluations(config: RealConfig) -> Iterator[Step]:
    left_out = rows_left_out(config)
    kinds = ("regrad", "icl") if _has_icl(config) else ("regrad",)
    starts = [f"start {kind}-{seed}" for kind in kinds for seed in config.seeds]
    adapters = {name: f"adapter {name}" for name in ("ft-direct", "ft-rag", "cpt") if name not in left_out}
    rivals = [step for name, step in adapters.items() if name != "cpt"]
    controls_need = [step for name, step in adapters.items() if name != "ft-direct"]
    icl = [f"bank icl-{name}-{seed}" for name in config.sets for seed in config.seeds if _has_icl(config)]
    single = [name for name in config.sets if name not in MULTI_HOP]
    hops = [name for name in config.sets if name in MULTI_HOP]
    yield _evaluation(config, "dev", [_given_passages(config, HELD)], ["sets", "model"])
    sets = [_given_passages(config, name) for name in single]
    yield _evaluation(config, "gold", sets, [*rivals, *icl, *starts, "start raw"])
    if hops:
        sets = [_given_passages(config, name) for name in hops]
        needs = [*rivals, *icl, *starts, "start raw"]
        yield _evaluation(config, "hops", sets, needs, [f"k=[{_MOST_HOPS}]"])
    for retriever in config.retrievers:
        sets = [_retrieved(config, name, retriever) for name in config.retrieved_sets]
        needs = [*rivals, *icl, *starts, *(f"index {retriever} {name}" for name in config.retrieved_sets)]
        yield _evaluation(config, BY_RETRIEVER[retriever], sets, needs, [f"k={list(config.k)}"])
    controls = [_given_passages(config, "squad_dev"), _random(config), _same_article(config)]
    yield _evaluation(config, "controls", controls, [*starts, *controls_need])
    if config.steps.prag_epochs:
        needs = [*starts, *rivals, "bank prag"]
        yield _evaluation(config, "prag", [_given_passages(config, "squad_dev")], needs)
    banks = [f"bank {codec}" for codec in CODECS]
    yield _evaluation(config, "codecs", [_given_passages(config, "squad_dev")], [*banks, *starts])


def _given_passages(config: RealConfig, name: str) -> dict[str, Any]:
    folder = f"{config.output}/sets/{name}"
    return {
        "name": name,
        "path": f"{folder}/questions.jsonl",
        "demonstrations": f"{folder}/demonstrations.jsonl",
        "passages": {"source": "given"},
    }


def _retrieved(config: RealConfig, name: str, retriever: RetrieverName) -> dict[str, Any]:
    index = {"source": "index", "index": f"{config.output}/index/{retriever}/{name}"}
    return _given_passages(config, name) | {"passages": index}


def _random(config: RealConfig) -> dict[str, Any]:
    corpus = f"{config.output}/sets/squad_dev/corpus.jsonl"
    own = _given_passages(config, "squad_dev")
    return own | {"name": "another passage", "passages": {"source": "random", "corpus": corpus}}


def _same_article(config: RealConfig) -> dict[str, Any]:
    path = f"{config.output}/sets/squad_dev/{SAME_ARTICLE}.jsonl"
    return _given_passages(config, "squad_dev") | {"name": "same article", "path": path}


def _evaluation(
    config: RealConfig, name: str, sets: Sequence[Any], needs: Sequence[str], changed: Sequence[str] = ()
) -> Step:
    work = Command("eval", path_of(name), (*evaluation_changes(config, name, sets), *changed, *ONE_WORKER))
    return Step(f"study {name}", work, f"{config.output}/studies/{name}", frozenset({"sets", *needs}))


def path_of(study: str) -> Path:
    """The file of an evaluation."""
    file = "gold" if study == "hops" else study.partition("-")[0]
    return _HERE / "evals" / f"{file}.yaml"


def evaluation_changes(config: RealConfig, study: str, sets: Sequence[Any]) -> list[str]:
    """What the study puts into an evaluation's file, as overrides: model, sets, places and seeds."""
    file = read_yaml(path_of(study))
    rows = [row for row in file["methods"] if not _names(row) & rows_left_out(config)]
    methods = json.loads(json.dumps(rows).replace("runs/real/", f"{config.output}/"))
    changes = {
        "output": f"{config.output}/studies/{study}",
        "models": {KNOWN: _model_settings(config)},
        "sets": sets,
        "methods": methods,
        "compare_to": "regrad" if file["compare_to"] in rows_left_out(config) else file["compare_to"],
        "seeds": list(config.seeds),
    }
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def _names(row: str | Mapping[str, Any]) -> set[str]:
    return {row} if isinstance(row, str) else {row["name"]}


def _model_settings(config: RealConfig) -> dict[str, Any]:
    return {"path": config.model, **read_yaml(_HERE / "settings.yaml")}


def _reading(config: RealConfig) -> Step:
    needs = {"tasks held", *(f"start regrad-{seed}" for seed in config.seeds)}
    return Step("reading", Function(measure_reading, config, ("output", "seeds")), config.output, frozenset(needs))


def ft_rag_place(config: RealConfig) -> str:
    """Where the LoRA of fine-tuned RAG is."""
    return f"{config.output}/adapters/ft-rag"


def _start(config: RealConfig, name: str) -> str:
    return f"{config.output}/starts/{name}"


def _command(
    config: RealConfig, name: str, verb: str, place: str, needs: Sequence[str], changed: Sequence[str]
) -> Step:
    makes = f"{config.output}/{place}"
    values = [f"{'bank.uri' if verb in ('build', 'adapters') else 'output'}={makes}"]
    if verb in ("train", "finetune"):
        values.append(f"model={json.dumps(_model_settings(config))}")
    if verb in ("train", "finetune", "build", "adapters"):
        values += ONE_WORKER
    work = Command(
        verb, _HERE / f"{verb.removesuffix('s') if verb == 'evals' else verb}.yaml", (*values, *changed), True
    )
    return Step(name, work, makes, frozenset(needs))


def _model(config: RealConfig) -> str:
    if Path(config.model).exists():
        return f"the model at {config.model}"
    return f"the model at {get_model(KNOWN, config.model)}"


def _encoder(config: RealConfig) -> str:
    if Path(config.encoder).exists():
        return f"the encoder at {config.encoder}"
    return f"the encoder at {get_model(ENCODER, config.encoder)}"


def _raw(config: RealConfig) -> str:
    """The start that meta-training begins with, as it is before the first step."""
    changes = [f"model={json.dumps(_model_settings(config))}"]
    train = load_settings(MetaTrainConfig, _HERE / "train.yaml", changes)
    uri = _start(config, "raw")
    random_meta_init(load_language_model(train.model, "cpu"), train.inner.initial_step_size).save(uri)
    return f"untrained MetaInit at {uri}"


def _ready_lora(config: RealConfig) -> str:
    """The LoRA as it is."""
    StaticLora.load(str(config.ft_rag)).save(ft_rag_place(config))
    return f"the LoRA {config.ft_rag}"


def _given(config: RealConfig, *, uri: str, name: str) -> str:
    """The start as it is, told where this study's model lies."""
    start = MetaInit.load(uri)
    replace(start, model=start.model_at(config.model)).save(_start(config, name))
    return f"the MetaInit {uri}"
