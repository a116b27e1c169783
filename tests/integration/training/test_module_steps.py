"""Steps of a module on two workers, plain and shared by DeepSpeed: the same numbers, and exact resumption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regrad.training.workers import Workers
from tests.integration.conftest import environment, free_port
from tests.tools import module_steps_worker as worker
from tests.tools.gloo import results, run_two


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_two(worker, tmp_path_factory.mktemp("steps"), free_port(), environment(), 120)


@pytest.mark.parametrize("name", worker.KINDS)
def test_two_workers_step_as_one_with_the_mean_of_their_gradients(folder: Path, name: str) -> None:
    alone = worker.made(None, Workers())
    for step, factor in enumerate((1.0, 0.9, 0.5)):
        parts = []
        for rank in (0, 1):
            worker.give_gradients(alone, step, rank)
            parts.append([parameter.grad for parameter in alone.module.parameters()])
        for parameter, first, second in zip(alone.module.parameters(), *parts, strict=True):
            assert first is not None and second is not None
            parameter.grad = (first + second) / 2
        assert alone.step(factor)
    found, expected = load_file(folder / f"{name}.safetensors"), alone.tensors()
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", worker.KINDS)
def test_a_state_is_loaded_to_the_last_bit_and_what_is_not_finite_changes_nothing(folder: Path, name: str) -> None:
    assert results(folder, name) == {"resumes": True, "refused": True, "unchanged": True}
