from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

PATH = Path(__file__).parents[3] / "cluster.yaml"


def test_rays_own_schema_accepts_the_cluster_file() -> None:
    validate_config(prepare_config(yaml.safe_load(PATH.read_text())))


def test_the_schema_check_can_fail() -> None:
    config = yaml.safe_load(PATH.read_text())
    config["max_wokers"] = 3
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(prepare_config(config))
