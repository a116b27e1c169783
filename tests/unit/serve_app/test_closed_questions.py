"""Closed questions over HTTP: kind and choices reach the generator, and what cannot be is refused."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.tools.answering import StandIn, api_of


@pytest.fixture
def standin() -> StandIn:
    return StandIn()


@pytest.fixture
def client(standin: StandIn) -> TestClient:
    return TestClient(api_of(standin))


@pytest.mark.parametrize(
    ("body", "kind", "choices"),
    [
        ({}, "open", ()),
        ({"kind": "yes-no"}, "yes-no", ()),
        ({"kind": "yes-no", "choices": ["Yes", "No", "Maybe"]}, "yes-no", ("yes", "no", "maybe")),
        ({"choices": ["Ada", "Bob"]}, "choice", ("Ada", "Bob")),
        ({"kind": "choice", "choices": ["Ada", "Bob"]}, "choice", ("Ada", "Bob")),
    ],
)
def test_kind_and_choices_reach_the_gateway(
    client: TestClient, standin: StandIn, body: dict[str, Any], kind: str, choices: tuple[str, ...]
) -> None:
    assert client.post("/v1/answer", json={"question": "Which?", **body}).status_code == 200
    assert client.post("/v1/compare", json={"question": "Which?", "methods": ["rag"], **body}).status_code == 200
    assert [(ask.kind, ask.choices) for ask in standin.asks] == [(kind, choices)] * 2


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "choice"},
        {"kind": "open", "choices": ["Ada", "Bob"]},
        {"kind": "chioce", "choices": ["Ada", "Bob"]},
        {"choices": ["Ada"]},
        {"choices": ["Ada", "Ada"]},
        {"choices": ["Ada", " "]},
        {"choices": [f"option {i}" for i in range(27)]},
    ],
)
def test_a_kind_without_its_choices_is_refused(client: TestClient, standin: StandIn, body: dict[str, Any]) -> None:
    response = client.post("/v1/answer", json={"question": "Which?", **body})
    assert response.status_code == 422 and response.json()["error"]["message"]
    assert not standin.asks
