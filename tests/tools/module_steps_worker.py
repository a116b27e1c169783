"""One of two workers that step a small module, plain and with DeepSpeed. Arguments: rank, port, folder for the results.

The first worker writes `<kind>.safetensors`, parameters and moments after three steps, and whether another that loads
the state after two takes the same third step, and a gradient that is not finite on one worker alone changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from regrad.training.module_steps import AdamWSettings, ModuleSteps, ZeroStage, make_steps
from regrad.training.workers import Workers
from tests.tools.gloo import work

KINDS: dict[str, ZeroStage | None] = {"plain": None, "zero1": 1, "zero2": 2}


def made(stage: ZeroStage | None, workers: Workers, seed: int = 0) -> ModuleSteps:
    torch.manual_seed(seed)
    module = nn.ModuleDict({"encoder": nn.Linear(5, 3), "generator": nn.Linear(4, 4, bias=False)})
    groups = [(list(module["encoder"].parameters()), 0.1), (list(module["generator"].parameters()), 0.01)]
    return make_steps(module, groups, AdamWSettings((0.9, 0.95), 0.01, 0.5, stage), workers)


def give_gradients(steps: ModuleSteps, step: int, rank: int) -> None:
    """Other ones at each step on each worker, and those of a leaf beside the parameters."""
    draws = torch.Generator().manual_seed(10 * step + rank)
    beside = torch.ones(2, requires_grad=True)
    products = [
        (parameter * torch.randn(parameter.shape, generator=draws)).sum() for parameter in steps.module.parameters()
    ]
    steps.differentiate(torch.stack(products).sum() + 3 * beside.sum(), [beside])
    assert beside.grad is not None and beside.grad.tolist() == [3, 3]


def check(name: str, rank: int, workers: Workers, folder: Path) -> dict[str, bool]:
    steps = made(KINDS[name], workers)
    for step in range(2):
        give_gradients(steps, step, rank)
        assert steps.step(1.0 - 0.1 * step)
    kept = steps.tensors()

    other = made(KINDS[name], workers, seed=1)
    other.load(kept)
    for each in (steps, other):
        give_gradients(each, 2, rank)
        assert each.step(0.5)
    state = steps.tensors()
    resumed = other.tensors()
    same = set(state) == set(resumed) and all(torch.equal(value, resumed[key]) for key, value in state.items())

    give_gradients(steps, 3, rank)
    if rank == 1:
        next(iter(steps.module.parameters())).grad.fill_(float("nan"))  # type: ignore[union-attr]
    refused = not steps.step(1.0)
    unchanged = all(torch.equal(value, state[key]) for key, value in steps.tensors().items())
    if rank == 0:
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    return {"resumes": same, "refused": refused, "unchanged": unchanged}


def check_all(rank: int, folder: Path) -> dict[str, dict[str, bool]]:
    return {name: check(name, rank, Workers(rank, 2, 2), folder) for name in KINDS}


if __name__ == "__main__":
    work(check_all)
