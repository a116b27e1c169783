"""The native routes: answers, comparisons, streams, and what the question looks like to the gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ray import serve
from starlette.testclient import TestClient

from regrad.errors import PassageNotFound
from serve_app.config import OFFERED
from serve_app.messages import Ask, Sampling
from tests.tools.answering import StandIn, api_of, events_of


@pytest.fixture
def standin() -> StandIn:
    return StandIn()


@pytest.fixture
def client(standin: StandIn) -> TestClient:
    return TestClient(api_of(standin, max_k=5, max_turns=3))


def stream(client: TestClient, path: str, body: dict[str, Any]) -> list[tuple[str, Any]]:
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return [(name, json.loads(data)) for name, data in events_of(response.text)]


def test_an_answer_states_what_it_rests_on(client: TestClient) -> None:
    body = client.post("/v1/answer", json={"question": "Where?"}, headers={"x-request-id": "r-1"}).json()
    assert (body["id"], body["answer"], body["method"], body["finish_reason"]) == ("r-1", "London.", "regrad", "stop")
    assert (body["release"], body["bank_version"], body["degraded"]) == ("main", "3", [])
    passage: dict[str, Any] = {"id": "p1", "title": "Ada", "text": "Ada Lovelace was born in London."}
    passage |= {"sources": [{"name": "bm25", "rank": 2, "score": 7.25}]}
    assert body["passages"] == [{**passage, "score": 2.5, "tier": "memory", "contribution": 0.5}]
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert body["milliseconds"]["total"] == 9.0


def test_a_method_without_passages_has_none(client: TestClient) -> None:
    body = client.post("/v1/answer", json={"question": "Where?", "method": "direct"}).json()
    assert (body["passages"], body["bank_version"], body["k"]) == ([], None, 0)


def test_every_option_reaches_the_gateway(client: TestClient, standin: StandIn) -> None:
    body = {
        "question": "Where?",
        "method": "regrad+icl",
        "k": 5,
        "gamma": 0.5,
        "max_new_tokens": 7,
        "temperature": 0.25,
        "top_p": 0.5,
        "seed": 3,
        "stop": ["\n"],
        "passage_ids": ["p1"],
        "release": "next",
        "contributions": "norms",
    }
    headers = {"x-request-id": "r-2", "x-request-timeout": "1e9"}
    assert client.post("/v1/answer", json=body, headers=headers).json()["passages"][0]["score"] is None
    (ask,) = standin.asks
    assert 59 < ask.seconds <= 60
    assert ask == Ask(
        question="Where?",
        method="regrad+icl",
        k=5,
        gamma=0.5,
        sampling=Sampling(7, 0.25, 0.5, 3, ("\n",)),
        passage_ids=("p1",),
        release="next",
        contributions="norms",
        request_id="r-2",
        seconds=ask.seconds,
    )


def test_a_stream_brings_the_passages_then_the_text_then_the_answer(client: TestClient) -> None:
    events = stream(client, "/v1/answer", {"question": "Where?"})
    assert [name for name, _ in events] == ["passages", "token", "token", "token", "done"]
    assert events[0][1]["passages"][0]["id"] == "p1"
    assert events[0][1]["milliseconds"] == 1.5
    assert "".join(data["text"] for name, data in events if name == "token") == "London."
    whole = client.post("/v1/answer", json={"question": "Where?"}).json()
    assert {**events[-1][1], "id": ""} == {**whole, "id": ""}


def test_a_stream_of_a_method_without_passages_begins_with_the_text(client: TestClient) -> None:
    assert stream(client, "/v1/answer", {"question": "Where?", "method": "direct"})[0] == ("token", {"text": "Lon"})


def test_an_error_before_a_stream_has_a_status_of_its_own(client: TestClient, standin: StandIn) -> None:
    standin.errors["regrad"] = PassageNotFound("no passage 'x'")
    response = client.post("/v1/answer", json={"question": "Where?", "stream": True})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "no passage 'x'"


def test_an_error_within_a_stream_is_its_last_event(client: TestClient, standin: StandIn) -> None:
    standin.late_errors["regrad"] = ValueError("a secret")
    events = stream(client, "/v1/answer", {"question": "Where?"})
    assert [name for name, _ in events] == ["passages", "token", "error"]
    assert events[-1][1]["error"]["type"] == "internal"
    assert "secret" not in json.dumps(events)


def test_a_comparison_has_every_method_and_those_named_twice_once(client: TestClient, standin: StandIn) -> None:
    body = client.post("/v1/compare", json={"question": "Where?"}).json()
    assert [answer["method"] for answer in body["answers"]] == list(OFFERED)
    assert body["errors"] == {}
    body = client.post("/v1/compare", json={"question": "Where?", "methods": ["rag", "direct", "rag"]}).json()
    assert [answer["method"] for answer in body["answers"]] == ["rag", "direct"]


def test_one_method_of_a_comparison_may_fail(client: TestClient, standin: StandIn) -> None:
    standin.errors["rag"] = PassageNotFound("no passage 'x'")
    body = client.post("/v1/compare", json={"question": "Where?", "methods": ["rag", "direct"]}).json()
    assert [answer["method"] for answer in body["answers"]] == ["direct"]
    assert body["errors"]["rag"]["type"] == "not_found"


def test_a_comparison_of_which_nothing_is_left_is_an_error(client: TestClient, standin: StandIn) -> None:
    standin.errors["rag"] = PassageNotFound("no passage 'x'")
    assert client.post("/v1/compare", json={"question": "Where?", "methods": ["rag"]}).status_code == 404


def test_the_methods_of_a_comparison_run_at_once(standin: StandIn) -> None:
    standin.seconds = 0.3
    client = TestClient(api_of(standin, request_seconds=1.0))  # one after the other they would take 1.2 s
    body = client.post("/v1/compare", json={"question": "Where?"}).json()
    assert (len(body["answers"]), body["errors"]) == (5, {})


@pytest.mark.slow
def test_a_comparison_gives_what_was_ready_in_time(standin: StandIn) -> None:
    class Slow(StandIn):
        async def _work(self, ask: Ask) -> None:
            self.seconds = 60.0 if ask.method == "rag" else 0.0
            await super()._work(ask)

    client = TestClient(api_of(Slow(), request_seconds=1.5))
    body = client.post("/v1/compare", json={"question": "Where?", "methods": ["rag", "direct"]}).json()
    assert [answer["method"] for answer in body["answers"]] == ["direct"]
    assert body["errors"]["rag"]["type"] == "timeout"


def test_events_of_a_streamed_comparison_name_their_method(client: TestClient, standin: StandIn) -> None:
    standin.late_errors["rag"] = ValueError("a secret")
    events = stream(client, "/v1/compare", {"question": "Where?", "methods": ["rag", "direct", "regrad"]})
    assert events.pop() == ("end", {})
    by_method = {method: [e for e in events if e[1]["method"] == method] for method in ("rag", "direct", "regrad")}
    assert [name for name, _ in by_method["rag"]] == ["passages", "token", "error"]
    assert [name for name, _ in by_method["direct"]] == ["token"] * 3 + ["done"]
    assert [name for name, _ in by_method["regrad"]] == ["passages"] + ["token"] * 3 + ["done"]


def test_the_server_says_what_it_has(client: TestClient) -> None:
    methods = client.get("/v1/methods").json()["methods"]
    assert {method["name"]: method["applies_gradients"] for method in methods} == {
        "direct": False,
        "rag": False,
        "regrad": True,
        "regrad+icl": True,
        "regrad-online": True,
    }
    bank = client.get("/v1/bank").json()
    assert bank["releases"] == [{"name": "main", "bank_version": 3, "share": 1.0}]
    assert bank["limits"] == {"max_k": 5, "max_gamma": 10.0, "max_new_tokens": 64, "max_question_characters": 4096}
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_deployment_can_carry_the_routes(standin: StandIn) -> None:
    """Ray Serve copies the application by pickling it, which not every FastAPI application survives."""

    class Gateway:
        pass

    assert issubclass(serve.ingress(api_of(standin))(Gateway), Gateway)
