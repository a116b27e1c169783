"""bf16 autocast with float32 phi0 and step sizes."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import environment
from tests.tools.patience import completed


def test_under_bf16_autocast_the_gradients_are_float32_and_point_the_same_way() -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.tools.bf16_worker"]
    result = completed(command, 120, cwd=root, env=environment(PYTHONPATH=str(root), OMP_NUM_THREADS="1"))
    if result.returncode == -signal.SIGILL:
        pytest.skip("bf16 matrix products are an illegal instruction on this machine")
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    for name, values in found.items():
        assert values["types"] == ["torch.float32"], name
        assert values["loss"] == pytest.approx(1, abs=0.02), name
    for name in ("graph", "hvp", "first-order"):
        assert found[name]["cosine"] > 0.999, name
    # A difference of bf16 gradients is coarse, and says so.
    assert found["difference"]["cosine"] > 0.9
    assert found["difference"]["error"] > 0.01
