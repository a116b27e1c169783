"""One of two workers: every engine in turn, without Ray. Arguments: rank, port, folder for the results.

For each engine the first worker writes `<engine>.safetensors`: the averaged meta-gradient (recovered from AdamW's first
moment after one unclipped step), and whether a second engine that loads the state goes on with the same bits.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from regrad.data.tasks import Task
from regrad.inference.verification import verify_decoding
from regrad.lab.config import LabConfig
from regrad.lab.files import lab_tasks
from regrad.lab.world import Split, World
from regrad.models.checkpoint import load_checkpoint
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.local_files import resolve_path
from regrad.models.sharded import loading_sharded, whole_shape
from regrad.settings import builtin_config, load_settings
from regrad.training.meta.collate import collate
from regrad.training.meta.config import InnerConfig, OptimizerConfig, StrategyConfig
from regrad.training.meta.objective import MetaGradient
from regrad.training.meta.optim import MetaParameters, OptimizerEngine, make_engine
from regrad.training.meta.strategies import make_strategy
from tests.tools.gloo import work

INNER = InnerConfig(initial_step_size=0.01)
ENGINES: dict[str, int | None] = {"ddp": None, "zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3}
ONE_NUMBER = {"zero1-same": 1, "zero2-same": 2}


def optimizer(stage: int | None) -> OptimizerConfig:
    return OptimizerConfig(zero_stage=stage, lr=1e-3, step_size_lr=1e-2, clip=0.05, steps=10)  # type: ignore[arg-type]


def model(sharded: bool = False) -> LanguageModel:
    return load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu", sharded)


def tasks() -> list[Task]:
    people = World(split=Split()).meta[:40]
    return [Task.from_record(record) for record in lab_tasks(people, LabConfig(people_per_record=3), 4, seed=3)]


def gradient(lm: LanguageModel, engine: OptimizerEngine, part: list[Task]) -> MetaGradient:
    """With sharded weights only the strategy of first-order passes works."""
    strategy = make_strategy(StrategyConfig(name="difference" if engine.layer_wise else "graph"), INNER)
    return strategy(lm, engine.point(), collate(lm, part))


def check_all(rank: int, folder: Path) -> dict[str, object]:
    results: dict[str, object] = {"halves": halves()}
    for name, stage in ENGINES.items():
        results[name] = check(name, stage, rank, folder)
    # Of one number for all step sizes only one worker has a part.
    same = INNER.model_copy(update={"step_size_mode": "same"})
    return results | {name: check(name, stage, rank, folder, same) for name, stage in ONE_NUMBER.items()}


def check(name: str, stage: int | None, rank: int, folder: Path, inner: InnerConfig = INNER) -> dict[str, object]:
    lm, mine = model(sharded=stage == 3), tasks()[rank::2]
    loaded, identity = held_by(lm), lm.identity()
    verify_decoding(lm)
    engine = make_engine(lm, MetaParameters(lm.subspace, inner, seed=0), optimizer(stage))
    found = gradient(lm, engine, mine)
    engine.apply(found, 1.0)
    state = engine.state()
    if rank == 0:
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    lm2 = model(sharded=stage == 3)
    other = make_engine(lm2, MetaParameters(lm2.subspace, inner, seed=1), optimizer(stage))
    other.load(state)
    for each in (engine, other):
        each.apply(found, 0.5)
    same = all(torch.equal(value, other.state()[key]) for key, value in engine.state().items())
    total = engine.total([1.0, float(rank)])
    whole = model().identity()
    return {"resumes": same, "loaded": loaded, "same": identity == whole, "held": held_by(lm), "total": total}


def halves() -> list[str]:
    """The types of the weights of a checkpoint of float32 that is loaded in bf16 and sharded."""
    config = load_settings(ModelConfig, builtin_config("models/lab.yaml"))
    with loading_sharded(torch.device("cpu"), torch.bfloat16):
        loaded = load_checkpoint(resolve_path(config.path), config.path, torch.bfloat16, config.attention).model
    return sorted({f"{weight.dtype} {weight.ds_tensor.dtype}" for weight in loaded.parameters()})  # type: ignore[attr-defined]


def held_by(lm: LanguageModel) -> float:
    """The share of the base's weights that this worker has."""
    whole = sum(whole_shape(weight).numel() for weight in lm.model.parameters())
    held = sum(p.numel() + (p.ds_tensor.numel() if hasattr(p, "ds_tensor") else 0) for p in lm.model.parameters())
    return held / whole


if __name__ == "__main__":
    work(check_all)
