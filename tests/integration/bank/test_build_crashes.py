"""Builds whose worker, driver or S3 server is killed: the same command goes on, to the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from ray_jobs import build_bank
from regrad.bank.config import BuildConfig
from regrad.bank.format import versions
from regrad.bank.reader import BankReader
from regrad.bank.verify import verify
from regrad.data.passages import encode_passages
from regrad.lab.files import held_out_corpus
from regrad.lab.world import World
from regrad.meta_init import random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from regrad.settings import builtin_config, load_settings
from regrad.storage import Storage
from tests.integration.conftest import environment, kill_all
from tests.tools.fork_server import family
from tests.tools.patience import Deadline, patient

PASSAGES, BLOCK = 240, 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, world: World) -> list[str]:
    """The build's settings but for the bank."""
    folder = tmp_path_factory.mktemp("inputs")
    lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    random_meta_init(lm, 1.0).save(str(folder / "m"))
    (folder / "c.jsonl").write_bytes(encode_passages(held_out_corpus(world)[:PASSAGES]))
    return [f"meta_init={folder}/m", f"corpus={folder}/c.jsonl", f"bank.shard_passages={BLOCK}", "cluster.workers=1"]


def config_of(inputs: list[str], uri: str) -> BuildConfig:
    return load_settings(BuildConfig, builtin_config("jobs/build-lab.yaml"), [*inputs, f"bank.uri={uri}"])


def start(inputs: list[str], uri: str, **variables: str) -> subprocess.Popen[str]:
    """The command, with a Ray of its own unless RAY_ADDRESS is given."""
    options = [part for setting in [*inputs, f"bank.uri={uri}"] for part in ("--set", setting)]
    config = str(builtin_config("jobs/build-lab.yaml"))
    return subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.build_bank", "--config", config, *options],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(done: Callable[[], bool], ended: Callable[[], object]) -> None:
    """Wait for it, while the build goes on."""
    deadline = Deadline(120)
    while not done():
        assert not ended()
        assert not deadline.over
        time.sleep(0.05)


def blocks_done(uri: str) -> int:
    return len(Storage(uri).list("builds"))


def content(uri: str) -> dict[str, bytes]:
    storage = Storage(uri)
    return {name: storage.read(name) for name in storage.files() if not name.endswith(".tmp")}


@pytest.fixture(scope="module")
def whole(inputs: list[str], local_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A bank that was built in one go."""
    uri = str(tmp_path_factory.mktemp("whole") / "bank")
    build_bank.run(config_of(inputs, uri))
    return content(uri)


def check(uri: str, whole: dict[str, bytes]) -> None:
    assert content(uri) == whole
    assert verify(uri) == []
    assert len(set(BankReader(uri).passage_ids())) == PASSAGES


def test_a_killed_worker_is_replaced(inputs: list[str], whole: dict[str, bytes], tmp_path: Path) -> None:
    uri = str(tmp_path / "bank")
    with ThreadPoolExecutor(1) as threads:
        build = threads.submit(build_bank.run, config_of(inputs, uri))
        wait_for(lambda: blocks_done(uri) >= 3, build.done)
        workers = [one for one in family(os.getpid()) if "GradientActor" in " ".join(one.cmdline())]
        assert workers
        for worker in workers:
            worker.kill()
        build.result(patient(200))
    check(uri, whole)


def test_a_killed_driver_leaves_nothing_visible_and_is_resumed(
    inputs: list[str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    uri = str(tmp_path / "bank")
    process = start(inputs, uri)
    wait_for(lambda: blocks_done(uri) >= 3, process.poll)
    kill_all(process)
    assert versions(Storage(uri)) == []
    before = blocks_done(uri)
    assert 3 <= before < PASSAGES // BLOCK
    written = {name: seconds for name, (_, seconds) in Storage(uri).files("shards").items()}
    build_bank.run(config_of(inputs, uri))
    check(uri, whole)
    now = {name: seconds for name, (_, seconds) in Storage(uri).files("shards").items()}
    assert sum(now[name] == seconds for name, seconds in written.items()) >= before, "blocks were computed again"


def test_an_s3_server_that_is_killed_costs_a_second_run(
    inputs: list[str],
    whole: dict[str, bytes],
    s3: str,
    restart_s3: Callable[[Callable[[], None]], None],
    local_cluster: str,
) -> None:
    uri = f"{s3}/crash-bank"
    process = start(inputs, uri, RAY_ADDRESS=local_cluster)
    wait_for(lambda: blocks_done(uri) >= 3, process.poll)

    def wait() -> None:
        output, _ = process.communicate(timeout=patient(280))
        assert process.returncode == 2, output
        assert "error: cannot " in output.splitlines()[-1]

    restart_s3(wait)
    fsspec.filesystem("s3").invalidate_cache()
    assert versions(Storage(uri)) == []
    build_bank.run(config_of(inputs, uri))
    check(uri, whole)
