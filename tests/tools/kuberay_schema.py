"""The part of KubeRay's published schema that the manifests of this project use, and their check against it.

The whole of it is three megabytes. After a change of what manifests use, with KubeRay's sources at hand:

python tests/tools/kuberay_schema.py KUBERAY/ray-operator/config/crd/bases
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "configs/kuberay"
SCHEMA = ROOT / "tests/unit/project/kuberay_schema.json"
SOURCE = "ray-project/kuberay v1.7.0, ray-operator/config/crd/bases (Apache-2.0), version v1, without what is not used"
_KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}


def manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every manifest of a Ray kind, with its file."""
    for path in sorted(MANIFESTS.rglob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        if content.get("apiVersion") == "ray.io/v1":
            yield path, content


def check(manifest: dict[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` for a field that the schema does not have, or of another type."""
    jsonschema.validate(manifest, json.loads(SCHEMA.read_text())["kinds"][manifest["kind"]])


def _used(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """The schema with only the properties that one of the values has; others are then errors."""
    kept = {key: schema[key] for key in ("type", "enum", "anyOf", "required", "pattern") if key in schema}
    objects = [value for value in values if isinstance(value, dict)]
    if "properties" in schema:
        names = {name for value in objects for name in value}
        kept["properties"] = {
            name: _used(part, [value[name] for value in objects if name in value])
            for name, part in sorted(schema["properties"].items())
            if name in names
        }
        kept["additionalProperties"] = False
    elif "additionalProperties" in schema:
        kept["additionalProperties"] = schema["additionalProperties"]
    if "items" in schema:
        kept["items"] = _used(schema["items"], [item for value in values if isinstance(value, list) for item in value])
    return kept


def _published(folder: Path, kind: str) -> dict[str, Any]:
    definition = yaml.safe_load((folder / f"ray.io_{_KINDS[kind]}.yaml").read_text())
    version = next(one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    # What every object of Kubernetes has in its metadata is not written there.
    names = {"name": {"type": "string"}, "generateName": {"type": "string"}}
    schema["properties"]["metadata"] = {"type": "object", "properties": names}
    return schema


if __name__ == "__main__":
    found = list(manifests())
    kinds = {
        kind: _used(_published(Path(sys.argv[1]), kind), [one for _, one in found if one["kind"] == kind])
        for kind in _KINDS
    }
    SCHEMA.write_text(json.dumps({"source": SOURCE, "kinds": kinds}, indent=1) + "\n")
