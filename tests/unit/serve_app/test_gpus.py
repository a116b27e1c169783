"""GPUs of a server: what replicas may reserve, what a machine must have, and where a generator loads its base."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from regrad.errors import ServeError
from serve_app.app import check_gpus
from serve_app.generator import model_devices
from tests.tools.refusals import refused, refused_settings
from tests.unit.serve_app.test_methods import config


@pytest.mark.parametrize(("gpus", "devices"), [([], ["cpu"]), ([0.5], ["cuda:0"]), (["3", "5"], ["cuda:0", "cuda:1"])])
def test_a_generator_loads_its_base_on_all_gpus_of_its_replica(
    gpus: list[Any], devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: gpus)
    assert model_devices() == devices


def test_a_share_of_several_gpus_is_refused() -> None:
    with refused_settings("share_of_several_gpus", "generator"):
        config(generator={"num_gpus": 1.5})


def test_a_machine_with_too_few_gpus_is_told_before_a_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    check_gpus(config(generator={"num_gpus": 2}))
    check_gpus(config(generator={"num_gpus": 2}, retriever={"num_gpus": 1}, embedded=True))
    with refused(ServeError, "too_few_gpus", expected=3, found=2):
        check_gpus(config(generator={"num_gpus": 2}, retriever={"num_gpus": 1}))
    with refused(ServeError, "too_few_gpus", expected=4, found=2):
        check_gpus(config(generator={"num_gpus": 2, "min_replicas": 2, "max_replicas": 2}))
