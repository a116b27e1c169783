from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from ray_jobs.cluster import SERVE_SETTINGS

PATH = Path(__file__).parents[3] / "cluster.yaml"


def test_rays_own_schema_accepts_the_cluster_file() -> None:
    validate_config(prepare_config(yaml.safe_load(PATH.read_text())))


def test_the_schema_check_can_fail() -> None:
    config = yaml.safe_load(PATH.read_text())
    config["max_wokers"] = 3
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(prepare_config(config))


def test_every_node_starts_with_serves_settings() -> None:
    """But for the short draining, which is for one machine."""
    here = set(SERVE_SETTINGS) - {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"}
    config = yaml.safe_load(PATH.read_text())
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (command for command in config[commands] if "/ray start " in command)
        assert {part for part in start.split() if part.startswith("RAY_SERVE_")} == {
            f"{name}={SERVE_SETTINGS[name]}" for name in here
        }
