"""Keys in front of an application: which open it, when they end, and what is sent on."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cloudpickle
import openai
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient
from starlette.types import Message

from regrad.errors import StorageError
from serve_app.auth import keys as ring_module
from serve_app.auth.gate import caller_at_hand, protect
from serve_app.auth.keys import KeyFileError, KeyRing, KeyStore, make_key
from serve_app.config import ProtectionConfig
from tests.tools.patience import Deadline

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def application() -> FastAPI:
    api = FastAPI()

    @api.get("/healthz")
    async def healthz() -> str:
        return "ok"

    @api.get("/web/{name}")
    async def web(name: str) -> str:
        return name

    @api.post("/v1/answer")
    async def answer(request: Request, tokens: int = 0) -> dict[str, Any]:
        logging.getLogger("app").info("headers %s of %s", dict(request.headers), request.url)
        caller = caller_at_hand.get()
        if caller is not None:
            caller.charge(tokens)
        return {"caller": caller.name if caller else None}

    @api.get("/v1/fail")
    async def fail() -> None:
        raise RuntimeError("a fault")

    return api


def new_key(path: Path, **limits: Any) -> str:
    key, record = make_key(limits.pop("name", "a"), NOW, **limits)
    KeyStore(str(path)).add(record)
    return key


@contextmanager
def served(path: Path, clock: Clock | None = None, **settings: Any) -> Iterator[TestClient]:
    config = ProtectionConfig(keys=str(path), **settings)
    app = protect(application(), config, clock or Clock(), lambda: NOW.timestamp())
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_opens_the_api_by_either_header(path: Path) -> None:
    key = new_key(path, name="the team")
    with served(path) as client:
        for headers in (
            bearer(key),
            {"authorization": f"bearer {key}"},
            {"x-api-key": key},
            {"authorization": "Basic Zm9v", "x-api-key": key},
        ):
            reply = client.post("/v1/answer", headers=headers)
            assert (reply.status_code, reply.json()) == (200, {"caller": "the team"})


def test_without_a_good_key_it_is_closed(path: Path) -> None:
    key = new_key(path)
    key_id = key.split("_")[1]
    wrong = (
        "",
        "x",
        key[:-1],
        key + "0",
        key.upper(),
        f"rg_{key_id}_{'0' * 64}",
        f"rg_{'0' * 12}_{'0' * 64}",
        "k" * 100_000,
        "é",
    )
    with served(path) as client:
        answers = [client.post("/v1/answer")]
        answers += [client.post("/v1/answer", headers={"x-api-key": each.encode("latin-1")}) for each in wrong]  # type: ignore[dict-item]
        answers += [client.post("/v1/answer", headers={"authorization": f"Basic {key}"}), client.get("/docs")]
        answers += [client.post("/"), client.get("/web"), client.get("/healthz/"), client.get("/openapi.json")]
    for reply in answers:
        error = reply.json()["error"]
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        assert error["type"] == error["code"] == "unauthorized"
        assert error["field"] == error["param"] == "authorization"
        assert "key" in error["message"]
    assert answers[6].json() == answers[7].json(), "an id that exists is not told from one that does not"


def test_what_is_open(path: Path) -> None:
    new_key(path)
    with served(path) as client:
        assert client.get("/healthz").status_code == client.get("/web/app.js").status_code == 200
        assert client.get("/").status_code == client.get("/readyz").status_code == 404
    with served(path, open_docs=True) as client:
        assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 200
        assert client.post("/v1/answer").status_code == 401


def test_open_pages_below_a_prefix(path: Path) -> None:
    new_key(path)
    app = protect(application(), ProtectionConfig(keys=str(path)), Clock(), lambda: 0.0)
    with TestClient(app, root_path="/qa") as client:
        assert client.get("/qa/healthz").status_code == 200
        assert client.get("/qahealthz").status_code == client.post("/qa/v1/answer").status_code == 401


def test_without_a_file_all_is_open() -> None:
    with TestClient(protect(application(), ProtectionConfig())) as client:
        assert client.post("/v1/answer").json() == {"caller": None}


def test_a_key_ends(path: Path) -> None:
    fresh = new_key(path, expires=NOW + timedelta(seconds=1))
    old = new_key(path, expires=NOW)
    revoked = new_key(path)
    KeyStore(str(path)).revoke(revoked.split("_")[1])
    with served(path) as client:
        assert client.post("/v1/answer", headers=bearer(fresh)).status_code == 200
        for key, message in ((old, "expired on 2026-01-02"), (revoked, "was revoked")):
            reply = client.post("/v1/answer", headers=bearer(key))
            assert reply.status_code == 401 and message in reply.json()["error"]["message"]


def test_the_file_is_read_again_when_it_changes(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, clock = new_key(path), Clock()
    with served(path, clock) as client:

        def status(key: str) -> int:
            return client.post("/v1/answer", headers=bearer(key)).status_code

        second = new_key(path)
        assert (status(first), status(second)) == (200, 401)
        clock.seconds += 2
        assert (status(first), status(second)) == (200, 200)
        KeyStore(str(path)).revoke(first.split("_")[1])
        clock.seconds += 2
        assert (status(first), status(second)) == (401, 200)
        path.write_text(json.dumps({"format": 1, "keys": [{"hash": second}]}))
        for _ in range(3):
            clock.seconds += 2
            assert (status(first), status(second)) == (401, 200)
        path.unlink()
        clock.seconds += 2
        assert status(second) == 200
        third = new_key(path)
        clock.seconds += 2
        assert (status(second), status(third)) == (401, 200)
    problems = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(problems) == 2, "each problem is logged once"
    assert "is damaged" in problems[0] and "there is no file of keys" in problems[1]
    assert second not in caplog.text


def test_a_store_that_hangs_holds_nobody_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, clock = new_key(path), Clock()
    monkeypatch.setattr(ring_module, "_WAIT_SECONDS", 0.05)
    ring, free = KeyRing(str(path), clock, lambda: 0.0), threading.Event()
    reads = []

    def hang(store: KeyStore) -> bytes:
        reads.append(1)
        free.wait(30)
        raise StorageError("the store is away")

    monkeypatch.setattr(KeyStore, "read", hang)

    async def run() -> bool:
        deadline = Deadline(5)
        for _ in range(20):
            clock.seconds += 10
            await ring.refresh()
            assert ring.check(key).name == "a"
        in_time = not deadline.over
        free.set()
        while ring._reading is not None:
            await asyncio.sleep(0.01)
        return in_time

    assert asyncio.run(run())
    assert len(reads) == 1, "one read at a time"


@pytest.mark.parametrize("content", [None, "", "{", '{"format": 1, "keys": [{"id": "x"}]}'])
def test_a_server_without_usable_keys_does_not_start(path: Path, content: str | None) -> None:
    if content is not None:
        path.write_text(content)
    with pytest.raises((KeyFileError, StorageError)):
        protect(application(), ProtectionConfig(keys=str(path)))


def test_a_replica_that_cannot_read_the_keys_does_not_start_and_lets_nobody_in(path: Path) -> None:
    key = new_key(path)
    app = cloudpickle.loads(cloudpickle.dumps(protect(_page, ProtectionConfig(keys=str(path)))))
    path.unlink()
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app({"type": "lifespan"}, receive, send))
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "there is no file of keys at" in sent[0]["message"]
    reply = TestClient(app).post("/v1/answer", headers=bearer(key))
    assert reply.status_code == 503 and "retry-after" in reply.headers
    assert str(path) not in reply.text


async def _page(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-security-policy", b"default-src 'self'"), (b"referrer-policy", b"same-origin")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def test_streams_pass_piece_by_piece(path: Path) -> None:
    key, api, sent = new_key(path), application(), []

    @api.get("/v1/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> Any:
            for number in range(3):
                yield f"{number}"
                assert sent[-1].get("body") == str(number).encode(), "a piece is out before the next is made"

        return StreamingResponse(pieces())

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.sleep(30)
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/stream",
        "query_string": b"",
        "headers": [(b"x-api-key", key.encode())],
        "asgi": {"version": "3.0", "spec_version": "2.4"},
    }
    config = ProtectionConfig(keys=str(path), cors_origins=("https://ask.example.org",))
    asyncio.run(protect(api, config, now=lambda: NOW.timestamp())(scope, receive, send))
    assert [message.get("body") for message in sent[1:]] == [b"0", b"1", b"2", b""]


def test_a_websocket_is_closed(path: Path) -> None:
    new_key(path)
    sent = []

    async def send(message: Message) -> None:
        sent.append(message)

    app = protect(application(), ProtectionConfig(keys=str(path)))
    asyncio.run(app({"type": "websocket", "path": "/"}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


@contextmanager
def listening(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=True))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def test_the_openai_client_gets_its_own_errors(path: Path) -> None:
    key = new_key(path, requests_per_minute=1)
    app = protect(application(), ProtectionConfig(keys=str(path)), now=lambda: NOW.timestamp())
    with listening(app) as url:
        ask: dict[str, Any] = {"path": "/answer", "cast_to": object}
        with pytest.raises(openai.AuthenticationError) as refused:
            openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong").post(**ask)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        assert client.post(**ask) == {"caller": "a"}
        with pytest.raises(openai.RateLimitError) as limited:
            client.post(**ask)
    assert refused.value.code == "unauthorized"
    assert limited.value.code == "rate_limited" and int(limited.value.response.headers["retry-after"]) >= 1
