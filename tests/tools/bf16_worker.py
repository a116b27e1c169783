"""Prints, for every strategy, how the meta-gradient under bf16 autocast compares with float32. In a process of its own:
on some processors bf16 matrix products stop a process with an illegal instruction."""

from __future__ import annotations

import json
import sys

import torch

from regrad.data.tasks import Task
from regrad.lab.config import LabConfig
from regrad.lab.files import lab_tasks
from regrad.lab.world import World
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from regrad.settings import builtin_config, load_settings
from regrad.training.meta.collate import collate
from regrad.training.meta.config import InnerConfig, StrategyConfig
from regrad.training.meta.objective import Point
from regrad.training.meta.strategies import make_strategy


def main() -> None:
    torch.set_num_threads(1)
    lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    records = lab_tasks(World().meta[:30], LabConfig(people_per_record=3), 2, seed=3)
    batch = collate(lm, [Task.from_record(record) for record in records])
    phi0 = lm.subspace.initial(0) + 0.01 * torch.randn(lm.subspace.size, generator=torch.Generator().manual_seed(1))
    at = Point(phi0, torch.full_like(phi0, 1.0))
    results = {}
    for name in ("graph", "hvp", "difference", "first-order"):
        strategy = make_strategy(StrategyConfig(name=name), InnerConfig())  # type: ignore[arg-type]
        exact = strategy(lm, at, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = strategy(lm, at, batch)
        cosine = torch.nn.functional.cosine_similarity(exact.phi0, rough.phi0, dim=0)
        results[name] = {
            "cosine": float(cosine),
            "loss": float(rough.loss / exact.loss),
            "types": sorted({str(t.dtype) for t in (rough.phi0, rough.alpha)}),
            "error": rough.error,
        }
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
