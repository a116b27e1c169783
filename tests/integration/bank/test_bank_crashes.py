"""A build that is killed anywhere leaves nothing half visible, and goes on to the bytes of one that was not."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from regrad.bank.format import versions
from regrad.bank.reader import BankReader
from regrad.bank.verify import verify
from regrad.errors import BankError
from regrad.storage import Storage
from tests.tools.bank_builder import build, corpus, run
from tests.tools.refusals import refused

KILLS = 20


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a bank but those that a dying writer may leave: no reader ever looks at them."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".tmp"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A bank that was built in one go."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = build(str(folder), corpus())
    assert (manifest.passages, manifest.quarantined) == (56, 5)
    return content(folder)


class Killed(BaseException):
    """Stands in for the end of the process."""


STEPS = ("fsync", "replace", "link", "unlink", "remove")


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Stop the process just before its `step`-th change of the file system."""
    left = [step]
    for name in STEPS:
        real = getattr(os, name)

        def stopped(*arguments: object, _real: object = real, **options: object) -> object:
            left[0] -= 1
            if left[0] <= 0:
                raise Killed
            return _real(*arguments, **options)  # type: ignore[operator]

        patch.setattr(os, name, stopped)


def test_killed_at_each_step_it_goes_on_to_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    step, dead = 0, 0
    while True:
        step += 1
        folder = tmp_path / str(step)
        try:
            with pytest.MonkeyPatch.context() as patch:
                kill_at(patch, step)
                build(str(folder), corpus())
        except Killed:
            dead += 1
        else:
            break
        if versions(Storage(str(folder))):
            assert verify(str(folder)) == []
        else:
            with refused(BankError, "not_found", uri=str(folder)):
                BankReader(str(folder))
        build(str(folder), corpus())
        assert content(folder).items() >= whole.items() - {("CURRENT", whole["CURRENT"])}, f"step {step}"
        left_over = content(folder).keys() - whole.keys()
        assert all(name.startswith("builds/") for name in left_over), f"step {step}"
    assert dead > 40


def test_killed_twenty_times_at_random_it_goes_on_to_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Real processes, real SIGKILL."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tools.bank_builder"])
    rng, alive, seconds = random.Random(0), 0, 0.3
    for number in range(KILLS):
        folder, started = tmp_path / str(number), tmp_path / f"{number}.started"
        process = context.Process(target=run, args=(str(folder), str(started), 60))
        process.start()
        while not started.exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, seconds))
        alive += process.is_alive()
        process.kill()
        process.join()
        build(str(folder), corpus())
        assert content(folder).items() >= whole.items(), f"kill {number}"
        assert verify(str(folder)) == []
        ids = BankReader(str(folder)).passage_ids()
        assert len(ids) == len(set(ids)) == 56
    assert alive > 5, "most processes were done before they were killed: nothing was tested"


def test_a_second_build_keeps_what_is_of_the_same_text(tmp_path: Path) -> None:
    passages = corpus()
    first = build(str(tmp_path), passages)
    assert build(str(tmp_path), passages) == first
    before = content(tmp_path)
    changed = [*passages[:10], type(passages[0])("id 10", "", "other words"), *passages[11:50]]
    second = build(str(tmp_path), changed)
    assert (second.version, second.passages) == (2, 47)
    new = content(tmp_path).keys() - before.keys()
    assert len([name for name in new if name.startswith("shards/")]) == 1
    bank, old = BankReader(str(tmp_path)), BankReader(str(tmp_path), version=1)
    assert bank.read(["id 9"]).equal(old.read(["id 9"]))
    assert not bank.read(["id 10"]).equal(old.read(["id 10"]))
    assert "id 55" not in bank


def test_a_receipt_whose_shard_is_gone_or_that_is_damaged_is_not_believed(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 30)
        with pytest.raises(Killed):
            build(str(tmp_path), corpus())
    receipts = sorted((tmp_path / "builds").glob("*.parquet"))
    assert len(receipts) >= 3
    receipts[0].write_bytes(b"garbage")
    next((tmp_path / "shards").glob("*.safetensors")).unlink()
    build(str(tmp_path), corpus())
    assert content(tmp_path).items() >= whole.items()
