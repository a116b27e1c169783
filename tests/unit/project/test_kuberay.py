"""The manifests for KubeRay, against its published schema and what this project has. None was run on Kubernetes."""

from __future__ import annotations

import copy
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

from ray_jobs.cluster import SERVE_SETTINGS
from regrad.cli.jobs import JOBS, _named
from regrad.retrieval.config import IndexConfig
from regrad.settings import Settings, WorkersConfig, load_settings
from serve_app.app import load_serve_file
from serve_app.config import ReplicaConfig
from tests.tools.kuberay_schema import MANIFESTS, ROOT, check, manifests

FILES = dict(manifests())
RAY_JOBS = [path for path, manifest in FILES.items() if manifest["kind"] == "RayJob"]
CLUSTER, SERVICE = MANIFESTS / "ray-cluster.yaml", MANIFESTS / "service/ray-service.yaml"
IN_IMAGE = "/app"


def named(path: Path) -> str:
    return str(path.relative_to(MANIFESTS))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_the_published_schema_has_every_field(path: Path) -> None:
    check(FILES[path])


@pytest.mark.parametrize("path", FILES, ids=named)
def test_the_check_can_fail(path: Path) -> None:
    wrong = copy.deepcopy(FILES[path])
    wrong["spec"]["rayVersoin"] = "2"
    with pytest.raises(jsonschema.ValidationError, match="rayVersoin"):
        check(wrong)


@pytest.mark.parametrize("path", RAY_JOBS, ids=named)
def test_a_job_is_a_command_line_of_regrad_with_a_configuration_of_the_image(path: Path) -> None:
    content = _settings_of(path).model_dump(mode="json")
    results = [content.get("output"), content.get("bank", {}).get("uri")]
    assert any(str(place).startswith("s3://") for place in results)  # not in a pod


def _settings_of(path: Path) -> Settings:
    words = shlex.split(FILES[path]["spec"]["entrypoint"])
    assert words[0] == "regrad"
    verb = next(job for job in JOBS if job.name == words[1])
    options = list(zip(words[2::2], words[3::2], strict=True))
    assert {name for name, _ in options} == {"--config", "--set"}
    config = ROOT / dict(options)["--config"].removeprefix(f"{IN_IMAGE}/")
    return load_settings(_named(verb.settings), config, [value for name, value in options if name == "--set"])


def test_there_is_a_job_for_each_kind_of_work() -> None:
    assert {path.stem for path in RAY_JOBS} == {"train", "index", "embed", "build", "evaluate"}
    settings = _settings_of(MANIFESTS / "jobs/embed.yaml")
    assert isinstance(settings, IndexConfig)
    assert settings.dense is not None


@pytest.mark.parametrize("path", RAY_JOBS, ids=named)
def test_the_cluster_starts_pods_for_a_jobs_workers(path: Path) -> None:
    workers: WorkersConfig = _settings_of(path).cluster  # type: ignore[attr-defined]
    demand = {"CPU": workers.cpus_per_worker, "GPU": float(bool(workers.gpu)), **workers.resources}
    expected = {"a100"} if workers.gpu else {"store"}
    assert _launched(CLUSTER, {name: amount for name, amount in demand.items() if amount}) == expected


@pytest.mark.parametrize("path", RAY_JOBS, ids=named)
def test_a_job_runs_on_the_cluster_that_is_there(path: Path) -> None:
    selector = FILES[path]["spec"]["clusterSelector"]["ray.io/cluster"]
    assert selector == FILES[CLUSTER]["metadata"]["name"]


def test_the_image_has_the_configurations_where_jobs_look_for_them() -> None:
    assert f"COPY --chown=regrad configs {IN_IMAGE}/configs" in (ROOT / "Dockerfile").read_text()


def _clusters() -> dict[Path, dict[str, Any]]:
    return {CLUSTER: FILES[CLUSTER]["spec"], SERVICE: FILES[SERVICE]["spec"]["rayClusterConfig"]}


def test_versions_and_images_agree() -> None:
    pinned = (ROOT / "constraints.txt").read_text().split("\nray==")[1].split("\n")[0]
    images = set()
    for spec in _clusters().values():
        assert spec["rayVersion"] == pinned
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        images |= {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    (image,) = images
    for path in (MANIFESTS / "kustomization.yaml", MANIFESTS / "service/kustomization.yaml"):
        content = yaml.safe_load(path.read_text())
        (renamed,) = content["images"]
        assert image == f"{renamed['name']}:{renamed['newTag']}"
        assert all((path.parent / resource).is_file() for resource in content["resources"])


def test_every_pod_of_the_server_has_serves_settings_and_its_port() -> None:
    wanted = dict(SERVE_SETTINGS)
    del wanted["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"]  # for one machine
    served = yaml.safe_load(FILES[SERVICE]["spec"]["serveConfigV2"])
    spec = _clusters()[SERVICE]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        found = {item["name"]: item["value"] for item in container["env"] if item["name"].startswith("RAY_SERVE_")}
        assert found == wanted
        assert {"containerPort": served["http_options"]["port"], "name": "serve"} in container["ports"]


def test_what_is_served_is_the_production_configuration() -> None:
    served = yaml.safe_load(FILES[SERVICE]["spec"]["serveConfigV2"])
    assert served == yaml.safe_load((ROOT / "configs/serve/production.yaml").read_text())


def test_no_pod_runs_as_root_or_holds_a_secret() -> None:
    for spec in _clusters().values():
        assert spec["authOptions"] == {"mode": "token"}
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
            assert not any("KEY" in item["name"] for one in pod["containers"] for item in one.get("env", []))


def _launched(path: Path, demand: dict[str, float]) -> set[str]:
    """The groups from which Ray's autoscaler starts pods for this demand."""
    manifest = {"metadata": {"name": "x", "namespace": "y"}, "spec": _clusters()[path]}
    config = _derive_autoscaling_config_from_ray_cr(manifest)
    head = config["head_node_type"]
    scorer = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    kinds = config["available_node_types"]
    found, unmet = get_nodes_for(kinds, {head: 1}, head, config["max_workers"], [demand], scorer)
    assert not unmet
    return set(found)


def test_deployments_and_jobs_start_the_pods_that_are_meant_for_them() -> None:
    served, _ = load_serve_file(ROOT / "configs/serve/production.yaml")
    assert _launched(SERVICE, _replica(served.generator)) == {"small-gpu"}
    assert _launched(SERVICE, _replica(served.retriever)) == {"store"}
    assert _launched(SERVICE, _replica(served.bank_loader)) == {"store"}
    worker = WorkersConfig(gpu=True, resources={"train": 1})
    assert _launched(CLUSTER, {"CPU": worker.cpus_per_worker, "GPU": 1, **worker.resources}) == {"a100"}
    assert _launched(CLUSTER, {"CPU": 1}) == {"store"}


def _replica(config: ReplicaConfig) -> dict[str, float]:
    demand = {"CPU": config.num_cpus, "GPU": config.num_gpus, **config.resources}
    return {name: amount for name, amount in demand.items() if amount}
