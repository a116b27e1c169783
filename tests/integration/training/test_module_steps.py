"""Steps of a module on two workers, plain and shared by DeepSpeed: the same numbers, and exact resumption."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regrad.training.workers import Workers
from tests.integration.conftest import environment, free_port
from tests.tools import module_steps_worker as worker
from tests.tools.patience import finish

SCRIPT = Path(worker.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, port = tmp_path_factory.mktemp("steps"), str(free_port())
    variables = environment(PYTHONPATH=str(SCRIPT.parents[3]), DS_ACCELERATOR="cpu")
    commands = [[sys.executable, str(SCRIPT), rank, port, str(folder)] for rank in ("0", "1")]
    workers = [subprocess.Popen(c, env=variables, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for c in commands]
    outputs = [finish(one, 120) for one in workers]
    assert all(one.returncode == 0 for one in workers), outputs[0][1].decode()[-3000:]
    return folder


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
    found = json.loads((folder / "results.json").read_text())[name]
    assert found == {"resumes": True, "refused": True, "unchanged": True}
