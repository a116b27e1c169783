"""Clients that leave, or that read too slowly, over a real socket: nothing goes on working for them."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.http import calls
from serve_app.messages import Ask, Piece, StreamEvent
from tests.tools.answering import StandIn, api_of, reply, served, wait_until


class Counting:
    """Counts the requests that are still being handled."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self.open, self.ended = app, 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.open -= 1
            self.ended += 1


@contextmanager
def request(url: str, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        yield connection


CHAT = {"messages": [{"role": "user", "content": "Where?"}]}
BODIES = [
    ("/v1/answer", {"question": "Where?"}, 1),
    ("/v1/answer", {"question": "Where?", "stream": True}, 1),
    ("/v1/compare", {"question": "Where?"}, 5),
    ("/v1/compare", {"question": "Where?", "stream": True}, 5),
    ("/v1/chat/completions", CHAT, 1),
    ("/v1/chat/completions", {**CHAT, "stream": True}, 1),
    ("/v1/completions", {"prompt": "Where?"}, 1),
]


@pytest.mark.parametrize(("path", "body", "calls"), BODIES, ids=lambda value: repr(value)[:60])
def test_the_work_for_a_client_that_left_is_cancelled(path: str, body: dict[str, Any], calls: int) -> None:
    standin = StandIn(seconds=30)
    app = Counting(api_of(standin))
    with served(app) as url:
        with request(url, path, body):
            wait_until(lambda: standin.running == calls)
        wait_until(lambda: standin.running == 0)
        wait_until(lambda: app.ended == 1)
    assert standin.cancelled == calls


class Endless(StandIn):
    """Streams until it is closed."""

    closed = False

    async def stream(self, ask: Ask) -> AsyncIterator[StreamEvent]:
        try:
            while True:
                await self._work(ask)
                yield Piece("x" * 1000)
        finally:
            self.closed = True


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/completions"])
def test_a_stream_that_was_begun_is_closed_when_its_client_leaves(path: str) -> None:
    standin = Endless(seconds=0.01)
    app = Counting(api_of(standin))
    body = {"stream": True, **({"prompt": "x"} if path == "/v1/completions" else {"question": "x"})}
    with served(app) as url:
        with request(url, path, body) as connection:
            received = b""
            while received.count(b"data:") < 3:
                received += connection.recv(65536)
            assert not standin.closed
        wait_until(lambda: standin.closed and app.ended == 1)
    assert standin.running == 0


class Long(StandIn):
    """Streams more than any socket buffers."""

    done = False

    async def stream(self, ask: Ask) -> AsyncIterator[StreamEvent]:
        for _ in range(64):
            yield Piece("x" * 500_000)
        self.done = True
        yield reply(ask)


def test_a_client_that_does_not_read_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "GRACE_SECONDS", 0.2)
    standin = Long()
    app = Counting(api_of(standin, request_seconds=0.5))
    with served(app) as url, request(url, "/v1/answer", {"question": "Where?", "stream": True}):
        wait_until(lambda: standin.done, 5)
        assert app.open == 1
        wait_until(lambda: app.ended == 1, 5)


def test_a_client_that_leaves_amid_its_body_hurts_nobody() -> None:
    standin = StandIn()
    app = Counting(api_of(standin))
    with served(app) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/answer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            )
            wait_until(lambda: app.open == 1)
        wait_until(lambda: app.ended == 1)
    assert standin.asks == []
