"""schemathesis over the OpenAPI description: whatever it allows or forbids, the answer is one that it documents."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from ray import cloudpickle
from ray.serve._private.utils import ensure_serialization_context
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from serve_app.auth.keys import KeyStore, make_key
from serve_app.config import ProtectionConfig
from serve_app.http.app import make_app
from tests.tools.answering import StandIn, api_of, config

SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", api_of(StandIn()))


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_every_response_is_as_documented(case: Case) -> None:
    case.headers.pop("x-request-timeout", None)  # the least that the description allows ends in a rightful 504
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


def test_the_description_says_where_a_key_is_needed_and_the_server_agrees(tmp_path: Path) -> None:
    key, record = make_key("a team", datetime.now(UTC))
    KeyStore(str(tmp_path / "keys.json")).add(record)
    keyed = config().model_copy(update={"protection": ProtectionConfig(keys=str(tmp_path / "keys.json"))})
    ensure_serialization_context()
    client = TestClient(cloudpickle.loads(cloudpickle.dumps(make_app(keyed, StandIn))))  # as Serve sends it
    for _ in range(2):
        said = client.get("/openapi.json", headers={"authorization": f"Bearer {key}"}).json()
    schemes = said["components"]["securitySchemes"]
    assert {(scheme["type"], scheme.get("scheme"), scheme.get("name")) for scheme in schemes.values()} == {
        ("http", "bearer", None),
        ("apiKey", None, "x-api-key"),
    }
    assert said["security"] == [{name: []} for name in schemes]
    needs = {path for path, methods in said["paths"].items() for each in methods.values() if "security" not in each}
    for path, methods in said["paths"].items():
        for verb, operation in methods.items():
            assert operation.get("security", []) == []
            assert ("401" in operation["responses"]) == (path in needs)
            refused = client.request(verb, path).status_code == 401
            assert refused == (path in needs), path
    assert {"/v1/answer", "/v1/models", "/v1/bank"} <= needs
    assert {"/healthz", "/readyz"} == set(said["paths"]) - needs


def test_without_keys_the_description_asks_for_none() -> None:
    said = TestClient(api_of(StandIn())).get("/openapi.json").json()
    assert "security" not in said and "securitySchemes" not in said["components"]
