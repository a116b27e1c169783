"""What never gets as far as an answer is counted and logged, too: once, by its kind, and without anybody's secret."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from starlette.testclient import TestClient

from regrad.errors import PromptTooLong
from serve_app.auth.keys import KeyStore, make_key
from serve_app.config import LimitsConfig, ObservabilityConfig, ProtectionConfig, ServeConfig
from serve_app.gateway import Gateway, Readiness
from serve_app.http.app import make_app
from serve_app.messages import Answered, Ask, Reply
from tests.tools.recording import Recorded
from tests.tools.releasing import setup

ASK = {"question": "Where is the treasure?"}


class Server:
    """The application in front of a real gateway whose router is made up, and what it has counted and logged."""

    def __init__(self, folder: Path, recorded: Recorded) -> None:
        self.key, record = make_key("a team", datetime.now(UTC), requests_per_minute=3)
        KeyStore(str(folder / "keys.json")).add(record)
        self.key_id, self._log, self._recorded = record.id, folder / "requests.jsonl", recorded
        config = self._config(folder)
        self.gateway = Gateway(config, Mock(), Mock(), Mock())
        self.gateway._router.answer = self._answer  # type: ignore[method-assign, assignment]
        self.error: Exception | None = None
        self.client = TestClient(make_app(config, lambda: self.gateway), headers={"x-request-id": "r-1"})

    def _config(self, folder: Path) -> ServeConfig:
        parts = {
            "protection": ProtectionConfig(keys=str(folder / "keys.json")),
            "watching": ObservabilityConfig(request_log=str(self._log)),
            "limits": LimitsConfig(max_body_bytes=2000),
        }
        return setup(folder).model_copy(update=parts)

    async def _answer(self, ask: Ask) -> Reply:
        if self.error:
            raise self.error
        return Reply(ask, Answered("In a chest", "stop", 3, 2, None, "main"))

    def post(self, content: Any = None, path: str = "/v1/answer", **headers: str) -> int:
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json", **headers}
        body = json.dumps(ASK) if content is None else content
        return self.client.post(path, content=body, headers=headers).status_code

    @property
    def counted(self) -> list[Any]:
        return [tuple(rest) for amount, *rest in self._recorded.of("regrad_requests") if amount == 1]

    @property
    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@pytest.fixture
def server(tmp_path: Path, recorded: Recorded) -> Server:
    return Server(tmp_path, recorded)


def test_an_answer_is_counted_once(server: Server) -> None:
    assert server.post() == 200
    assert server.counted == [("regrad", "200", "ok")]
    assert len(server.logged) == 1


@pytest.mark.parametrize(
    ("content", "path", "headers", "status", "kind"),
    [
        (None, "/v1/answer", {"authorization": "Bearer wrong-secret"}, 401, "unauthorized"),
        (None, "/v1/answer?api_key=wrong-secret", {}, 400, "key_in_address"),
        (b"x" * 2001, "/v1/answer", {}, 413, "too_large"),
        (b"{", "/v1/answer", {}, 400, "invalid_json"),
        (b"{}", "/v1/answer", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b'{"question": "Is it wrong-secret?", "k": 0}', "/v1/answer", {}, 422, "invalid_request"),
        (b'{"prompt": "x", "model": "wrong-secret"}', "/v1/completions", {}, 404, "not_found"),
        (None, "/v1/wrong-secret", {}, 404, "not_found"),
        (None, "/v1/models", {}, 405, "method_not_allowed"),
    ],
)
def test_a_refusal_is_counted_and_logged(
    server: Server, content: Any, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    assert server.post(content, path, **headers) == status
    assert server.counted == [("other", str(status), kind)]
    [line] = server.logged
    caller = None if status == 401 or kind == "key_in_address" else server.key_id
    found = {name: line[name] for name in ("request_id", "caller", "status", "error")}
    assert found == {"request_id": "r-1", "caller": caller, "status": status, "error": kind}
    assert "wrong-secret" not in json.dumps(line) and server.key not in json.dumps(line)
    assert "question" not in line


def test_who_asks_too_often_is_counted_by_key(server: Server) -> None:
    assert [server.post() for _ in range(4)] == [200, 200, 200, 429]
    assert server.counted[-1] == ("other", "429", "rate_limited")
    assert server.logged[-1]["caller"] == server.key_id


def test_keys_that_cannot_be_read_are_counted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "keys.json").unlink()
    assert server.post() == 503
    assert server.counted == [("other", "503", "unavailable")]


def test_what_the_gateway_refused_is_counted_once_by_its_method(server: Server) -> None:
    server.error = PromptTooLong("300 tokens, 256 fit")
    assert server.post() == 413
    assert server.counted == [("regrad", "413", "too_long")]
    assert [line["method"] for line in server.logged] == ["regrad"]


def test_many_paths_and_models_make_no_more_series(server: Server) -> None:
    for number in range(30):
        server.client.get(f"/nothing-{number}")
        server.client.get(f"/web/{number}.js")
    assert set(server.counted) == {("other", "401", "unauthorized"), ("other", "404", "not_found")}


def test_a_gateway_that_is_not_there_costs_only_the_count(server: Server) -> None:
    def none_yet() -> Gateway:
        raise RuntimeError("starting")

    client = TestClient(make_app(server._config(Path(server._log.parent)), none_yet))
    assert client.post("/v1/answer", json=ASK).status_code == 401
    assert server.counted == []


def test_a_look_whether_it_is_ready_is_no_refused_request(server: Server) -> None:
    server.gateway._readiness = Readiness((), lambda _: ["generator"])
    response = server.client.get("/readyz")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"]["message"] == "not ready: there is no running replica of generator"
    assert server.client.get("/healthz").status_code == 200
    server.gateway._readiness = Readiness((), lambda _: [])
    assert server.client.get("/readyz").json() == {"status": "ready"}
    assert server.counted == [] and server.logged == []
