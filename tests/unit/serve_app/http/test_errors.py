"""Errors over HTTP: one shape, the right status, the field at fault, and nothing that is not the caller's business."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError
from ray.serve._private.http_util import RequestIdMiddleware
from ray.serve.exceptions import BackPressureError
from starlette.testclient import TestClient

from regrad.errors import BankError, NothingFound, PassageNotFound, PromptTooLong
from serve_app.http.app import make_app
from serve_app.http.errors import UnknownRelease
from tests.tools.answering import StandIn, api_of, config, served


@pytest.fixture
def standin() -> StandIn:
    return StandIn()


@pytest.fixture
def client(standin: StandIn) -> TestClient:
    return TestClient(api_of(standin, max_body_bytes=2000, max_question_characters=100))


ASKING = ("/v1/answer", "/v1/compare", "/v1/chat/completions", "/v1/completions")
RAISED: list[tuple[BaseException, int, str, str | None]] = [
    (PassageNotFound("no passage 'x'"), 404, "not_found", "passage_ids"),
    (NothingFound("nothing matches"), 404, "not_found", "question"),
    (UnknownRelease("no release 'x'"), 404, "not_found", "release"),
    (PromptTooLong("300 tokens, 256 fit"), 413, "too_long", "question"),
    (BackPressureError(3, 2), 429, "overloaded", None),
    (TimeoutError(), 504, "timeout", None),
    (BankError("secret: s3://bucket"), 503, "unavailable", None),
    (ActorUnavailableError("secret", None), 503, "unavailable", None),
    (asyncio.CancelledError("secret"), 503, "unavailable", None),
    (ValueError("secret"), 500, "internal", None),
    (RayTaskError("f", "secret", ValueError("secret")), 500, "internal", None),
    (RayTaskError("f", "secret", PassageNotFound("no passage 'x'")), 404, "not_found", "passage_ids"),
    (RayTaskError("f", "secret", TimeoutError()).as_instanceof_cause(), 504, "timeout", None),
]


@pytest.mark.parametrize(("error", "status", "kind", "field"), RAISED, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_is_raised_while_answering(
    client: TestClient, standin: StandIn, error: BaseException, status: int, kind: str, field: str, stream: bool
) -> None:
    standin.errors["regrad"] = error
    response = client.post("/v1/answer", json={"question": "Where?", "stream": stream})
    assert response.status_code == status
    told = response.json()["error"]
    assert (told["type"], told["field"], told["code"], told["param"]) == (kind, field, kind, field)
    assert "secret" not in response.text
    assert ("retry-after" in response.headers) == (status in (429, 503))
    assert standin.running == 0


def test_the_question_goes_by_its_name_in_each_protocol(client: TestClient, standin: StandIn) -> None:
    standin.errors["regrad"] = PromptTooLong("300 tokens, 256 fit")
    chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Where?"}]})
    text = client.post("/v1/completions", json={"prompt": "Where?"})
    assert (chat.status_code, chat.json()["error"]["field"]) == (413, "messages")
    assert (text.status_code, text.json()["error"]["field"]) == (413, "prompt")
    assert text.json()["error"]["message"] == "300 tokens, 256 fit"


def test_an_error_may_quote_what_is_no_text(client: TestClient, standin: StandIn) -> None:
    standin.errors["regrad"] = PassageNotFound("no passage '\ud800'")
    response = client.post("/v1/answer", json={"question": "Where?"})
    assert (response.status_code, response.json()["error"]["message"]) == (404, "no passage '\\ud800'")


def test_the_log_has_what_the_caller_is_not_told(
    client: TestClient, standin: StandIn, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    standin.errors["regrad"] = ValueError("a detail")
    response = client.post("/v1/answer", json={"question": "Where?"}, headers={"x-request-id": "find-me"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "find-me"
    assert "request find-me: internal: ValueError" in caplog.text
    assert "a detail" in caplog.text


def test_the_gateway_may_not_be_ready() -> None:
    def not_ready() -> StandIn:
        raise BankError("loading")

    client = TestClient(make_app(config(), not_ready))
    for path, body in (("/v1/answer", {"question": "Where?"}), ("/v1/completions", {"prompt": "x", "stream": True})):
        response = client.post(path, json=body)
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert client.get("/v1/bank").status_code == 503
    assert client.get("/healthz").status_code == 200


INVALID: list[tuple[dict[str, Any], str]] = [
    ({}, "question"),
    ({"question": ""}, "question"),
    ({"question": " \n"}, "question"),
    ({"question": "x" * 101}, "question"),
    ({"question": ["Where?"]}, "question"),
    ({"question": "a\x00b"}, "question"),
    ({"question": "\ud800"}, "question"),
    ({"question": "Where?", "k": 0}, "k"),
    ({"question": "Where?", "k": 11}, "k"),
    ({"question": "Where?", "k": True}, "k"),
    ({"question": "Where?", "k": "3"}, "k"),
    ({"question": "Where?", "k": 10**400}, "k"),
    ({"question": "Where?", "gamma": 10**400}, "gamma"),
    ({"question": "Where?", "gamma": float("nan")}, "gamma"),
    ({"question": "Where?", "gamma": float("inf")}, "gamma"),
    ({"question": "Where?", "temperature": -1}, "temperature"),
    ({"question": "Where?", "top_p": 0}, "top_p"),
    ({"question": "Where?", "seed": 2**63}, "seed"),
    ({"question": "Where?", "stop": ["x"] * 5}, "stop"),
    ({"question": "Where?", "stop": [""]}, "stop.0"),
    ({"question": "Where?", "max_new_tokens": 65}, "max_new_tokens"),
    ({"question": "Where?", "method": "regard"}, "method"),
    ({"question": "Where?", "passage_ids": []}, "passage_ids"),
    ({"question": "Where?", "passage_ids": ["a", "a"]}, "passage_ids"),
    ({"question": "Where?", "passage_ids": ["a"] * 11}, "passage_ids"),
    ({"question": "Where?", "passage_ids": ["a" * 513]}, "passage_ids.0"),
    ({"question": "Where?", "contributions": "shap"}, "contributions"),
    ({"question": "Where?", "stream": "yes"}, "stream"),
    ({"question": "Where?", "methd": "rag"}, "methd"),
]


@pytest.mark.parametrize(("body", "field"), INVALID, ids=lambda value: repr(value)[:60])
def test_an_invalid_field_is_named(client: TestClient, standin: StandIn, body: dict[str, Any], field: str) -> None:
    response = client.post("/v1/answer", content=json.dumps(body), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["field"]) == (422, field)
    assert response.json()["error"]["type"] == "invalid_request"
    assert standin.asks == []


def test_an_unknown_method_is_answered_with_those_that_there_are(client: TestClient) -> None:
    for body in ({"question": "Where?", "method": "regard"}, {"question": "Where?", "methods": ["regard"]}):
        path = "/v1/compare" if "methods" in body else "/v1/answer"
        message = client.post(path, json=body).json()["error"]["message"]
        assert "did you mean 'regrad'?" in message and "direct, rag, regrad, regrad+icl" in message


@pytest.mark.parametrize("path", ASKING)
@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe\x00", "application/json", 400),
        (b"[" * 1900, "application/json", 400),
        (b'{"question": ' + b"9" * 1900 + b"}", "application/json", 422),
        (b"", "application/json", 422),
        (b"null", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"{}", "text/plain", 415),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"{}", "\xff;;=", 415),
        (b"x" * 2001, "application/json", 413),
    ],
    ids=repr,
)
def test_a_body_that_is_none(client: TestClient, path: str, content: bytes, kind: str, status: int) -> None:
    response = client.post(path, content=content, headers={"content-type": kind.encode("latin-1")})
    assert response.status_code == status, response.text
    assert response.json()["error"]["field"] in {"body", "question", "messages", "prompt"}
    assert "x-request-id" in response.headers


def test_a_body_that_does_not_come_is_not_waited_for(standin: StandIn) -> None:
    head = b"POST /v1/answer HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n"
    with served(api_of(standin, request_seconds=0.3)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + b'{"question": ')
            answer = b""
            while b"the body did not come in the time" not in answer and (piece := connection.recv(65536)):
                answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ") and b"the body did not come in the time" in answer
    assert standin.asks == []


def test_the_last_of_equal_keys_counts(client: TestClient, standin: StandIn) -> None:
    body = b'{"question": "first", "question": "last"}'
    assert client.post("/v1/answer", content=body, headers={"content-type": "application/json"}).status_code == 200
    assert standin.asks[0].question == "last"


def test_paths_and_verbs(client: TestClient) -> None:
    for path in ("/nothing", "/v1/answer/", "/v1"):
        response = client.get(path)
        assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found")
    for path in ASKING:
        response = client.get(path)
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert response.json()["error"]["type"] == "method_not_allowed"
    response = client.post("/v1/models")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")


def test_request_ids(client: TestClient, standin: StandIn) -> None:
    for given in ("a", "A.b_c-9", "x" * 64):
        assert client.get("/healthz", headers={"x-request-id": given}).headers["x-request-id"] == given
    for given, taken in (("x" * 65, "x" * 64), ("a b", "a_b"), ("a;;b", "a__b"), ("a/b", "a_b")):
        response = client.get("/healthz", headers={"x-request-id": given.encode("latin-1")})
        assert response.headers.get_list("x-request-id") == [taken]
    assert re.fullmatch("[0-9a-f]{32}", client.get("/healthz", headers={"x-request-id": ""}).headers["x-request-id"])


def test_behind_serve_the_id_is_not_told_twice(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.serve.get_replica_context", object)
    behind = TestClient(RequestIdMiddleware(api_of(standin)))
    for given in ("r-1", "r 1", "", "x" * 200):
        assert behind.get("/healthz", headers={"x-request-id": given}).headers.get_list("x-request-id") == [given]
    assert behind.post("/v1/answer", json={"question": "?"}, headers={"x-request-id": "r 1"}).json()["id"] == "r_1"
    assert len(behind.get("/healthz").headers.get_list("x-request-id")) == 1


def test_a_shorter_time_may_be_asked_for(client: TestClient, standin: StandIn) -> None:
    standin.seconds = 5.0
    for stream in (False, True):
        body = {"question": "Where?", "stream": stream}
        response = client.post("/v1/answer", json=body, headers={"x-request-timeout": "0.05"})
        assert (response.status_code, response.json()["error"]["type"]) == (504, "timeout")
    assert (standin.running, standin.cancelled) == (0, 2)
    assert all(ask.seconds <= 0.05 for ask in standin.asks)


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "1e400", "soon", "", "\xb2"])
def test_a_time_that_is_none(client: TestClient, given: str) -> None:
    headers = {"x-request-timeout": given.encode("latin-1")}
    response = client.post("/v1/answer", json={"question": "Where?"}, headers=headers)
    assert (response.status_code, response.json()["error"]["field"]) == (422, "x-request-timeout")


def test_a_body_in_chunks_is_read_no_further_than_the_limit() -> None:
    """Over a real socket: the answer comes although the body never ends."""
    with served(api_of(StandIn(), max_body_bytes=2000)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/answer HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            connection.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
            connection.sendall(b"3e9\r\n" + b" " * 1001 + b"\r\n")
            answer = b""
            while b"larger than 2000 bytes" not in answer:
                part = connection.recv(65536)
                assert part, answer
                answer += part
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("path", ASKING)
def test_a_full_server_refuses_questions_unread_and_still_says_what_it_is(
    client: TestClient, standin: StandIn, path: str
) -> None:
    standin.full = True
    response = client.post(path, content=b"not even JSON")
    assert response.status_code == 429
    assert response.json()["error"]["type"] == "overloaded"
    assert response.headers["retry-after"] == "1"
    assert [record.problem.status for record in standin.refusals if record.problem] == [429]
    assert client.get("/v1/bank").status_code == 200


def test_a_misspelt_field_names_the_nearest_one(client: TestClient) -> None:
    error = client.post("/v1/answer", json={"question": "Who?", "gama": 2}).json()["error"]
    assert error["field"] == "gama" and error["message"].endswith("did you mean 'gamma'?")
