"""The headers that every response has, whoever answers: a route, the keys in front of it, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from serve_app.config import ProtectionConfig
from serve_app.http.app import Requests, make_app
from tests.tools.answering import StandIn, config
from tests.unit.serve_app.auth.test_auth import bearer, new_key

ASKED = {"question": "Where?", "method": "regrad"}


def test_every_response_has_the_security_headers(tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys.json", requests_per_minute=3)
    keyed = config().model_copy(update={"protection": ProtectionConfig(keys=str(tmp_path / "keys.json"))})
    client = TestClient(make_app(keyed, lambda: StandIn(errors={"rag": ValueError("a fault")})))
    replies = [client.get("/healthz"), client.get("/v1/methods"), client.get("/?api_key=x")]
    replies += [client.post("/v1/answer", json=ASKED | {"method": "rag"}, headers=bearer(key))]
    replies += [client.get("/none", headers=bearer(key))]
    replies += [client.post("/v1/answer", json=ASKED, headers=bearer(key)) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200, 401, 400, 500, 404, 200, 429]
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers.get_list("content-security-policy") == ["frame-ancestors 'none'"]


def test_the_policy_of_a_page_is_kept() -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-security-policy", b"default-src 'self'"), (b"referrer-policy", b"same-origin")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    reply = TestClient(Requests(page, FastAPI(), 1.0, StandIn)).get("/")
    assert reply.headers.get_list("content-security-policy") == ["default-src 'self'", "frame-ancestors 'none'"]
    assert reply.headers["referrer-policy"] == "same-origin"


def test_serve_finds_the_routes_behind_the_keys(tmp_path: Path) -> None:
    new_key(tmp_path / "keys.json")
    keyed = config().model_copy(update={"protection": ProtectionConfig(keys=str(tmp_path / "keys.json"))})
    app = make_app(keyed, StandIn)
    assert "/v1/answer" in {route.path for route in app.routes}  # type: ignore[attr-defined]
