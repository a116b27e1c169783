"""Whether bf16 is used: by what a child process found, which may not survive it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regrad.errors import ModelError
from regrad.models import precision
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from regrad.models.precision import Bf16, bf16_here, require_bf16
from tests.tools.refusals import refused

CPU = torch.device("cpu")
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("REGRAD_CACHE", str(tmp_path))
    return tmp_path


def probe(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(precision, "PROBE", (sys.executable, "-c", code))


def says(error: float, speedup: float) -> str:
    return f'print(\'{{"error": {error}, "speedup": {speedup}}}\')'


def test_a_child_that_dies_of_an_illegal_instruction_means_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    probe(monkeypatch, DIES)
    found = bf16_here(CPU)
    assert not found.right and not found.faster
    assert "SIGILL" in found.reason
    with refused(ModelError, "no_bf16", setting="optimizer.precision"):
        require_bf16(CPU, "optimizer.precision")


def test_a_model_is_not_loaded_in_bf16_where_products_in_it_kill(
    monkeypatch: pytest.MonkeyPatch, tiny_path: Path
) -> None:
    probe(monkeypatch, DIES)
    with refused(ModelError, "no_bf16", setting="model.dtype"):
        load_language_model(ModelConfig(path=str(tiny_path), dtype="bfloat16"), "cpu")
    assert load_language_model(ModelConfig(path=str(tiny_path)), "cpu").compute_dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "speedup", "right", "faster"),
    [(0.005, 4.0, True, True), (0.005, 0.5, True, False), (0.7, 4.0, False, False)],
)
def test_bf16_has_to_be_right_and_faster(
    monkeypatch: pytest.MonkeyPatch, error: float, speedup: float, right: bool, faster: bool
) -> None:
    probe(monkeypatch, says(error, speedup))
    found = bf16_here(CPU)
    assert (found.right, found.faster) == (right, faster)
    if right:
        require_bf16(CPU, "by name, slow is no reason to refuse")


def test_what_was_found_is_kept_for_the_machine(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    mark = cache / "runs"
    code = f"open({str(mark)!r}, 'a').write('x'); {says(0.004, 3)}"
    probe(monkeypatch, code)
    first = bf16_here(CPU)
    precision._probed.cache_clear()  # as in another process
    assert bf16_here(CPU) == first
    assert mark.read_text() == "x"
    monkeypatch.setattr(precision, "_processor", lambda: "another one")
    precision._probed.cache_clear()
    assert bf16_here(CPU) == first
    assert mark.read_text() == "xx"


@pytest.mark.parametrize("code", ["print('no JSON')", "raise MemoryError"])
def test_a_probe_that_fails_for_other_reasons_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, cache: Path, code: str
) -> None:
    probe(monkeypatch, code)
    assert not bf16_here(CPU).right
    assert not list(cache.rglob("*.json"))


def test_a_cache_that_cannot_be_written_does_not_matter(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    (cache / "bf16").write_text("a file where the directory would be")
    probe(monkeypatch, says(0.003, 2))
    assert bf16_here(CPU) == Bf16(True, True, "products in bf16 are right here, and 2 times as fast as in float32")


@pytest.mark.slow
def test_the_real_probe_gives_an_answer_or_dies_of_a_signal() -> None:
    done = subprocess.run(precision.PROBE, capture_output=True, text=True, check=False)
    assert done.returncode <= 0, done.stderr[-1000:]
    found = Bf16.of_probe(done.returncode, done.stdout)
    assert found.reason
    if done.returncode == 0:
        assert found.right, found.reason


def test_the_processor_has_a_name_wherever_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision.processor_name()
    monkeypatch.setattr(precision, "_cpu_lines", dict)
    assert precision.processor_name() in (platform.processor(), platform.machine())
    monkeypatch.setattr(precision, "_cpu_lines", lambda: {"model name": "model name\t: Some CPU @ 2 GHz"})
    assert precision.processor_name() == "Some CPU @ 2 GHz"
