"""A stand-in for the gateway, and the HTTP interface on top of it: in this process, or on a real port in a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.methods.base import PassageUse
from regrad.methods.registry import METHODS
from regrad.retrieval.hits import Hit, HitSource
from serve_app.config import ServeConfig
from serve_app.http.app import make_app
from serve_app.http.errors import RequestRecord
from serve_app.messages import Answered, Ask, Piece, Reply, Retrieved, StreamEvent
from tests.tools.patience import Deadline

PASSAGE = Passage("p1", "Ada", "Ada Lovelace was born in London.")
WORDS = ("Lon", "don", ".")


def config(**limits: Any) -> ServeConfig:
    return ServeConfig.model_validate({"meta_init": "m", "bank": "b", "index": "i", "limits": limits})


@dataclass
class StandIn:
    """Answers "London." to everything, or raises the error of the method asked for; remembers what it was asked."""

    errors: dict[str, BaseException] = field(default_factory=dict)
    late_errors: dict[str, BaseException] = field(default_factory=dict)
    seconds: float = 0.0
    asks: list[Ask] = field(default_factory=list)
    refusals: list[RequestRecord] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    full: bool = False
    running: int = 0
    cancelled: int = 0

    async def answer(self, ask: Ask) -> Reply:
        self.asks.append(ask)
        await self._work(ask)
        return reply(ask)

    async def stream(self, ask: Ask) -> AsyncIterator[StreamEvent]:
        self.asks.append(ask)
        await self._work(ask)
        whole = reply(ask)
        if whole.retrieved:
            yield whole.retrieved
        for word in WORDS:
            await self._work(ask)
            yield Piece(word)
            if ask.method in self.late_errors:
                raise self.late_errors[ask.method]
        yield whole

    async def releases(self) -> list[dict[str, object]]:
        if "releases" in self.errors:
            raise self.errors["releases"]
        return [{"name": "main", "bank_version": 3, "share": 1.0}]

    async def missing(self) -> list[str]:
        return self.absent

    def refused(self, record: RequestRecord) -> None:
        self.refusals.append(record)

    async def _work(self, ask: Ask) -> None:
        self.running += 1
        try:
            await asyncio.sleep(self.seconds)
            if ask.method in self.errors:
                raise self.errors[ask.method]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def reply(ask: Ask) -> Reply:
    method = METHODS[ask.method]
    retrieved = Retrieved((Hit(PASSAGE, 2.5, (HitSource("bm25", 2, 7.25),)),), 1.5) if method.retrieves else None
    answered = Answered(
        text="".join(WORDS),
        finish_reason="stop",
        prompt_tokens=7,
        completion_tokens=3,
        bank_version="3" if method.applies_gradients else None,
        release="main",
        uses=(PassageUse("p1", tier=Tier.MEMORY, contribution=0.5),) if method.applies_gradients else (),
    )
    return Reply(ask, answered, retrieved, total_milliseconds=9.0)


def api_of(standin: StandIn, **limits: Any) -> ASGIApp:
    return make_app(config(**limits), lambda: standin)


@contextmanager
def served(api: ASGIApp) -> Iterator[str]:
    """The address of a server on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    deadline = Deadline(seconds)
    while not condition():
        assert not deadline.over, "it did not happen"
        time.sleep(0.005)


def events_of(text: str) -> list[tuple[str, str]]:
    """The events of a stream: name and data of each."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if lines:
            found.append((lines.get("event", "message"), lines["data"]))
    return found
