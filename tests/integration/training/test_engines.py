"""DDP and DeepSpeed at ZeRO 0 to 3: the same meta-gradient on two workers as in one process, and exact resumption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from regrad.training.meta.optim import MetaParameters, PlainEngine
from tests.integration.conftest import environment, free_port
from tests.tools import engine_worker
from tests.tools.gloo import results, run_two


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_two(engine_worker, tmp_path_factory.mktemp("engines"), free_port(), environment(), 300)


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    """One process with all tasks, and the same step."""
    lm = engine_worker.model()
    engine = PlainEngine(MetaParameters(lm.subspace, engine_worker.INNER, 0), engine_worker.optimizer(None))
    engine.apply(engine_worker.gradient(lm, engine, engine_worker.tasks()), 1.0)
    return engine.state()


@pytest.mark.parametrize("name", engine_worker.ENGINES)
def test_two_workers_have_the_meta_gradient_of_one_process(folder: Path, alone: dict[str, Tensor], name: str) -> None:
    """AdamW's first moment after one step is (1 - beta1) times the averaged gradient; other sums round otherwise."""
    state = load_file(folder / f"{name}.safetensors")
    for key in ("phi0.exp_avg", "raw.exp_avg"):
        assert (state[key] - alone[key]).norm() / alone[key].norm() < 1e-5, key
    torch.testing.assert_close(state["raw"], alone["raw"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*engine_worker.ENGINES, *engine_worker.ONE_NUMBER])
def test_another_engine_goes_on_from_the_state_with_the_same_bits(folder: Path, name: str) -> None:
    assert results(folder, name)["resumes"] is True


def test_with_zero_3_each_worker_holds_half_of_the_frozen_base(folder: Path) -> None:
    assert results(folder, "zero2")["held"] == 1.0
    assert 0.49 < results(folder, "zero3")["held"] < 0.52


def test_with_zero_3_no_worker_ever_holds_more_and_the_base_is_the_same(folder: Path) -> None:
    """Right after loading, with the checks of the model and its decoding behind it."""
    assert results(folder, "zero2")["loaded"] == 1.0
    assert 0.49 < results(folder, "zero3")["loaded"] < 0.52
    assert results(folder, "zero3")["same"] is True


def test_what_is_loaded_in_bf16_is_sharded_in_bf16(folder: Path) -> None:
    assert results(folder, "halves") == ["torch.bfloat16 torch.bfloat16"]


def test_a_total_is_over_all_workers(folder: Path) -> None:
    assert results(folder, "zero1")["total"] == [2.0, 1.0]
