"""The files for `ray up`: what Ray's own schema, preparation and autoscaler make of them, without any cloud.

Whether a cloud takes them is not tested: none is at hand.
"""

from __future__ import annotations

import copy
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from moto import mock_aws
from packaging.requirements import Requirement
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from ray_jobs.cluster import SERVE_SETTINGS
from ray_jobs.node_hours import GROUP
from regrad.settings import WorkersConfig
from serve_app.app import load_serve_file
from serve_app.config import ReplicaConfig

ROOT = Path(__file__).parents[3]
AWS, GCP = ROOT / "cluster.yaml", ROOT / "configs/clusters/gcp.yaml"
both = pytest.mark.parametrize("path", [AWS, GCP], ids=["aws", "gcp"])


def read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


@pytest.fixture(scope="module")
def prepared() -> dict[Path, dict[str, Any]]:
    """Each file as the autoscaler gets it, with what an instance type has (of EC2's own descriptions, in moto)."""
    files = {path: prepare_config(read(path)) for path in (AWS, GCP)}
    with mock_aws(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "none")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "none")
        files[AWS] = AWSNodeProvider.fillout_available_node_types_resources(files[AWS])
    return files


@both
def test_rays_own_schema_accepts_the_cluster_file(path: Path) -> None:
    validate_config(prepare_config(read(path)))


@both
def test_machines_have_their_kind_as_a_label_by_which_run_records_price_them(path: Path) -> None:
    kinds = prepare_config(read(path))["available_node_types"]
    assert {name: kind["labels"] for name, kind in kinds.items()} == {name: {GROUP: name} for name in kinds}


@both
def test_the_schema_check_can_fail(path: Path) -> None:
    config = read(path)
    config["max_wokers"] = 3
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(prepare_config(config))


@both
def test_every_node_starts_with_serves_settings(path: Path) -> None:
    """But for the short draining, which is for one machine."""
    here = set(SERVE_SETTINGS) - {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"}
    config = read(path)
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (command for command in config[commands] if "/ray start " in command)
        settings, _, _ = start.partition(" /home/ubuntu/venv/bin/ray start ")
        said = subprocess.run(
            ["bash", "-c", f"{settings} env -0"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        found = dict(variable.split("=", 1) for variable in said.split("\0") if variable.startswith("RAY_SERVE_"))
        assert found == {name: SERVE_SETTINGS[name] for name in here}


@both
def test_every_machine_gets_the_pinned_versions_of_this_project(path: Path) -> None:
    config = read(path)
    (mounted,) = config["file_mounts"]
    installs = [command for key in config for command in _commands(config, key) if "pip install" in command]
    assert installs and all(f"-c {mounted}/constraints.txt" in command for command in installs)
    for excluded in (".git", "runs"):  # nothing private and nothing large goes to every machine
        assert excluded in config["rsync_exclude"]
    assert (ROOT / config["file_mounts"][mounted] / "constraints.txt").is_file()


def _commands(config: dict[str, Any], key: str) -> list[str]:
    return [str(command) for command in config[key]] if key.endswith("setup_commands") else []


@pytest.mark.parametrize("extra", ["aws", "gcp"])
def test_what_starts_machines_is_pinned(extra: str) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    listed = project.split(f"\n{extra} = [\n")[1].split("]")[0]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    names = {Requirement(line.strip(' ",')).name for line in listed.splitlines() if line.strip()}
    assert names and names <= pinned


def _launched(config: dict[str, Any], *demands: dict[str, float]) -> dict[str, int]:
    """The machines that the autoscaler starts for these demands, by their kind; all demands must be met."""
    kinds = copy.deepcopy(config["available_node_types"])
    head = config["head_node_type"]
    scorer = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    found, unmet = get_nodes_for(kinds, {head: 1}, head, config["max_workers"], list(demands), scorer)
    assert not unmet
    return dict(found)


def _replica(config: ReplicaConfig) -> dict[str, float]:
    return _without_zeros({"CPU": config.num_cpus, "GPU": config.num_gpus, **config.resources})


def _worker(**resources: float) -> dict[str, float]:
    config = WorkersConfig(workers=8, gpu=True, resources=resources)
    return _without_zeros({"CPU": config.cpus_per_worker, "GPU": 1, **config.resources})


def _without_zeros(demand: dict[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in demand.items() if amount}


@both
def test_each_deployment_starts_the_machines_that_are_meant_for_it(
    path: Path, prepared: dict[Path, dict[str, Any]]
) -> None:
    config, _ = load_serve_file(ROOT / "configs/serve/production.yaml")
    there = prepared[path]
    assert set(_launched(there, _replica(config.generator))) == {"small_gpu"}
    assert set(_launched(there, _replica(config.retriever))) == {"store"}
    assert set(_launched(there, _replica(config.bank_loader))) == {"store"}
    assert set(_launched(there, _replica(config.gateway))) == {"store"}  # no GPU for what needs none


@both
def test_the_largest_server_of_the_configuration_fits(path: Path, prepared: dict[Path, dict[str, Any]]) -> None:
    config, _ = load_serve_file(ROOT / "configs/serve/production.yaml")
    deployments = (config.retriever, config.bank_loader, config.generator, config.gateway)
    demands = [_replica(one) for one in deployments for _ in range(one.max_replicas)]
    found = _launched(prepared[path], *demands)
    assert set(found) == {"small_gpu", "store"}
    assert found["small_gpu"] == config.generator.max_replicas


@both
def test_each_job_starts_the_a100s_that_it_asks_for(path: Path, prepared: dict[Path, dict[str, Any]]) -> None:
    there = prepared[path]
    assert _launched(there, *[_worker(train=1)] * 8) == {"a100_spot": 1}  # one machine of 8 GPUs, the cheapest first
    assert _launched(there, *[_worker(train=1, on_demand=1)] * 8) == {"a100": 1}
    assert _launched(there, *[_worker(train=1, on_demand=1, memory_80gb=1)] * 16) == {"a100_80gb": 2}


def test_a_job_takes_machines_on_demand_when_there_are_no_more_of_the_others(
    prepared: dict[Path, dict[str, Any]],
) -> None:
    there = prepared[AWS]
    most = there["available_node_types"]["a100_spot"]["max_workers"]
    assert _launched(there, *[_worker(train=1)] * 8 * (most + 1)) == {"a100_spot": most, "a100": 1}


@both
def test_a_task_without_a_gpu_starts_no_gpu(path: Path, prepared: dict[Path, dict[str, Any]]) -> None:
    assert _launched(prepared[path], {"CPU": 1}) == {"store": 1}


@both
def test_the_head_runs_no_workers(path: Path, prepared: dict[Path, dict[str, Any]]) -> None:
    there = prepared[path]
    assert there["available_node_types"][there["head_node_type"]]["resources"]["CPU"] == 0


def test_instance_types_have_what_the_comments_and_resources_say(prepared: dict[Path, dict[str, Any]]) -> None:
    kinds = prepared[AWS]["available_node_types"]
    found = {name: (kind["resources"].get("CPU"), kind["resources"].get("GPU", 0)) for name, kind in kinds.items()}
    assert found == {
        "head": (0, 0),
        "a100_spot": (96, 8),
        "a100": (96, 8),
        "a100_80gb": (96, 8),
        "small_gpu": (8, 1),
        "store": (16, 0),
    }
    for kind in kinds.values():
        resources = kind["resources"]
        for own in ("train", "on_demand", "memory_80gb", "generate"):
            assert resources.get(own, resources.get("GPU", 0)) == resources.get("GPU", 0)  # one for each GPU


def test_both_clouds_offer_the_same_kinds_of_machines() -> None:
    aws, gcp = (read(path)["available_node_types"] for path in (AWS, GCP))
    assert set(aws) == set(gcp)
    names = {kind: set(aws[kind]["resources"]) - {"CPU"} for kind in aws}
    assert names == {kind: set(gcp[kind]["resources"]) - {"CPU", "GPU"} for kind in gcp}


@both
def test_workers_have_another_identity_than_the_head_that_may_start_machines(path: Path) -> None:
    config = read(path)
    kinds = config["available_node_types"]
    identity = {name: _identity(kind["node_config"]) for name, kind in kinds.items()}
    workers = {name for kind, name in identity.items() if kind != config["head_node_type"]}
    assert len(workers) == 1 and identity[config["head_node_type"]] not in workers


def _identity(node: dict[str, Any]) -> str:
    if "IamInstanceProfile" in node:
        return str(node["IamInstanceProfile"]["Name"])
    (account,) = node["serviceAccounts"]
    return str(account["email"])
