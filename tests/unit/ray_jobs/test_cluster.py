"""A local Ray that does not come up in its own 30 seconds is started again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import ray

from ray_jobs import cluster as module
from ray_jobs.cluster import (
    changed_nodes,
    cluster,
    gpus_of,
    model_devices,
    repeated,
    require_model,
    require_workers,
)
from ray_jobs.corpus_blocks import actor_pool
from regrad.errors import ClusterError, ModelError
from regrad.settings import WorkersConfig
from tests.tools.refusals import refused

SLOW = Exception("The current node timed out during startup.\nMore.")


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """What each start does, taken from the front; Ray itself is not touched."""
    todo: list[Exception | None] = []

    def init(**_: Any) -> None:
        if error := todo.pop(0):
            raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(module, "prepare_serve_proxy", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return todo


def test_a_slow_start_is_tried_again(starts: list[Exception | None]) -> None:
    starts += [SLOW, SLOW, None]
    with cluster():
        assert not starts


def test_nodes_that_come_and_go_are_named() -> None:
    before, now = {"a": "10.0.0.1/a", "b": "10.0.0.2/b"}, {"b": "10.0.0.2/b", "c": "10.0.0.3/c"}
    assert changed_nodes(before, now) == [
        "node 10.0.0.3/c has come",
        "node 10.0.0.1/a is gone; what was at work there is done again elsewhere",
    ]
    assert changed_nodes(now, now) == []


def test_what_is_repeated_goes_on_after_an_error_and_ends_with_the_block() -> None:
    calls: list[float] = []
    enough = threading.Event()

    def look() -> float | None:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise RuntimeError("the head is busy")
        if len(calls) == 2:
            return 0.2
        enough.set()
        return None

    with repeated(look, 0.01):
        assert enough.wait(30)
    assert calls[2] - calls[1] >= 0.2, "it was told to wait longer, once"
    ended = len(calls)
    time.sleep(0.05)
    assert len(calls) == ended


def test_what_never_starts_is_one_sentence(starts: list[Exception | None]) -> None:
    starts += [SLOW] * 3
    with refused(ClusterError, "unreachable") as info, cluster():
        pytest.fail("there is no cluster")
    assert not starts and "\n" not in str(info.value)


def test_a_wrong_setting_is_not_tried_again(starts: list[Exception | None]) -> None:
    starts += [ValueError("num_cpus is negative")]
    with refused(ClusterError, "unreachable"), cluster():
        pytest.fail("there is no cluster")
    assert not starts


def test_what_a_failed_start_has_begun_is_ended(
    starts: list[Exception | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    fake = ray.init

    def init(**options: Any) -> None:
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        fake(**options)

    monkeypatch.setattr(ray, "init", init)
    starts += [SLOW, None]
    try:
        with cluster():
            assert begun[0].wait(60) != 0
            assert begun[1].poll() is None
    finally:
        for process in begun:
            process.kill()
            process.wait()


TRAIN = WorkersConfig(workers=2, gpu=False, resources={"train": 1})


def test_a_machine_alone_has_none_of_a_clusters_own_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    with refused(ClusterError, "too_small", resource="train", expected=2, found=0):
        require_workers(TRAIN)
    require_workers(WorkersConfig(workers=2))


def test_a_cluster_that_may_grow_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr(ray, "cluster_resources", dict)
    require_workers(TRAIN)


def test_workers_of_a_corpus_ask_for_the_clusters_own_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    assert actor_pool(TRAIN)["resources"] == {"train": 1}


def test_workers_take_what_is_configured_even_while_the_cluster_has_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that scales to zero starts machines for what the workers ask for."""
    monkeypatch.setattr(ray, "cluster_resources", dict)
    assert actor_pool(WorkersConfig(workers=8, gpu=False))["num_cpus"] == 1


LARGE = WorkersConfig(workers=2, gpus_per_worker=2)


def test_workers_with_a_base_over_several_gpus_ask_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the cluster has: on the CPU such a base would not be what was asked for."""
    monkeypatch.setattr(ray, "cluster_resources", dict)
    assert (gpus_of(LARGE), actor_pool(LARGE)["num_gpus"]) == (2, 2)
    assert gpus_of(WorkersConfig()) == 0
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2.0})
    assert gpus_of(WorkersConfig()) == 1


def test_more_gpus_than_this_machine_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    with refused(ClusterError, "too_small", resource="GPU", expected=4, found=2):
        require_workers(LARGE)
    require_workers(LARGE.model_copy(update={"workers": 1}))


@pytest.mark.parametrize(
    ("gpus", "devices"), [([], "cpu"), (["0"], "cuda"), ([0.5], "cuda"), (["4", "6"], ["cuda:0", "cuda:1"])]
)
def test_a_worker_loads_its_base_on_the_gpus_that_it_was_given(
    gpus: list[str], devices: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: gpus)
    assert model_devices() == devices


def test_a_model_that_is_nowhere_is_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with refused(ModelError, "not_found", path="/nowhere/model"):
        require_model("/nowhere/model")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")  # another machine may have it
    require_model("/nowhere/model")
