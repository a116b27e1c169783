"""Parts of a job: each is made once, and an error of an actor ends the job as itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ray_jobs.parts import RecordActor, collect_parts, part_records
from regrad.errors import BankConflict, FingerprintMismatch, RegradError, StorageError, SynthesisError
from regrad.storage import Storage, parts_uri
from tests.tools.refusals import refused

BATCH = {"line": np.array([b"one", b"two"]), "problem": np.array(["", ""]), "read_bytes": np.array([3, 3])}


class Echo(RecordActor):
    """Writes each line as a question about itself, or raises."""

    batch = "2 lines"

    def __init__(self, output: str, error: Exception | None = None) -> None:
        super().__init__(output)
        self._error = error

    @property
    def key(self) -> str:
        return "echo"

    def records(self, lines: list[bytes], problems: list[str]) -> list[dict[str, Any]]:
        if self._error:
            raise self._error
        return [{"line": line.decode()} for line in lines]

    def questions(self, record: dict[str, Any]) -> int:
        return len(record)


def collected(actor: RecordActor) -> tuple[list[str], list[str]]:
    """The names of the parts and the lines of progress, when this actor makes the only block."""
    row = {key: values[0] for key, values in actor(BATCH).items()}
    told: list[str] = []
    progress = SimpleNamespace(push=SimpleNamespace(remote=told.append))
    return list(collect_parts([row], progress)), told


def test_a_part_is_made_once(tmp_path: Path) -> None:
    output = f"{tmp_path}/out"
    [name], [told] = collected(Echo(output))
    assert told.startswith("2 passages, 2 questions, ")
    assert part_records(Storage(parts_uri(output)), name) == [{"line": "one"}, {"line": "two"}]
    [again], [told] = collected(Echo(output, AssertionError("it is there already")))
    assert again == name
    assert told.startswith("2 passages, 2 of them by an earlier run, 2 questions, 0.0 ")


@pytest.mark.parametrize("error", [FingerprintMismatch("a", "b"), BankConflict("bank", 2), SynthesisError("no pair")])
def test_an_error_of_an_actor_ends_the_job_as_itself(tmp_path: Path, error: RegradError) -> None:
    with pytest.raises(type(error)) as raised:
        collected(Echo(f"{tmp_path}/out", error))
    assert str(raised.value) == str(error)
    assert vars(raised.value) == vars(error)


def test_a_full_disk_or_gpu_is_an_error_of_ours(tmp_path: Path) -> None:
    with refused(StorageError, "system_error"):
        collected(Echo(f"{tmp_path}/out", OSError(28, "No space left on device")))
    with refused(SynthesisError, "out_of_memory", batch="2 lines"):
        collected(Echo(f"{tmp_path}/out", torch.OutOfMemoryError()))
