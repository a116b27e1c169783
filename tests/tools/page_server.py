"""A server with the real page and made-up answers: it speaks the HTTP contract, and misbehaves when it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from regrad.methods.registry import METHODS
from serve_app.config import OFFERED
from serve_app.http.pages import add_pages
from serve_app.http.requests import CompareRequest
from tests.tools.patience import Deadline

PASSAGES = (
    (
        "les-dripen",
        "Les Dripen",
        "Les Dripen was born in Thomville. She is on the staff of Rasoft. She is an electrician.",
    ),
    (
        "drax-dripen",
        "Drax Dripen",
        "Drax Dripen works for Fisoft. He was educated at Zokbridge and serves as a mechanic.",
    ),
    ("les-gutror", "Les Gutror", "Les Gutror is an alumnus of Drondford. She has the occupation of composer."),
)
TIMES = {
    "direct": (0.0, 0.0, 1.9, 6.1, 21.0),
    "rag": (5.2, 0.0, 2.3, 24.8, 23.1),
    "regrad": (5.2, 9.6, 2.1, 7.0, 22.4),
    "regrad+icl": (5.2, 9.8, 2.2, 25.3, 24.0),
    "regrad-online": (5.2, 28.4, 2.0, 7.0, 22.6),
}
BANK = {
    "name": "main",
    "share": 1.0,
    "meta_init": "runs/demo/meta-init",
    "fingerprint": "9f2c41d07ab3e865",
    "bank": "runs/demo/bank",
    "bank_version": 3,
    "passages": 400,
    "codec": "bf16",
    "bytes_per_atom": 294912,
}
LIMITS = {"max_k": 10, "max_gamma": 10.0, "max_new_tokens": 64, "max_question_characters": 200}


@dataclass
class Behaviour:
    """What the server does; tests change it while it runs. `hang`: stop after this many words, until
    disconnected; `cut`: end the body after the words, without a word of farewell."""

    words: tuple[str, ...] = ("Ra", "soft")
    own_words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    passages: tuple[tuple[str, str, str], ...] = PASSAGES
    pause: float = 0.0
    hang: int | None = None
    cut: bool = False
    failing: frozenset[str] = frozenset()
    degraded: frozenset[str] = frozenset()
    key: str | None = None
    refusal: tuple[int, dict[str, Any], dict[str, str]] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    disconnected: threading.Event = field(default_factory=threading.Event)

    def said(self, method: str) -> tuple[str, ...]:
        """The words of a method's answer, as many as `words`."""
        return self.own_words.get(method, self.words)


def stand_in(behaviour: Behaviour) -> FastAPI:
    """The application."""
    api = FastAPI(docs_url=None)
    add_pages(api)

    @api.middleware("http")
    async def check_key(request: Request, call_next: Any) -> Response:
        wanted = f"Bearer {behaviour.key}"
        if behaviour.key and "/v1/" in request.url.path and request.headers.get("authorization") != wanted:
            return error(401, "unauthorized", "a valid API key is needed")
        return await call_next(request)  # type: ignore[no-any-return]

    @api.get("/v1/methods")
    async def methods() -> dict[str, Any]:
        flags = ("name", "summary", "retrieves", "passages_in_prompt", "applies_gradients")
        return {
            "methods": [{flag: getattr(method, flag) for flag in flags} for method in map(METHODS.__getitem__, OFFERED)]
        }

    @api.get("/v1/bank")
    async def bank() -> dict[str, Any]:
        return {"releases": [BANK], "limits": LIMITS}

    @api.post("/v1/compare", response_model=None)
    async def compare(body: CompareRequest) -> Response:
        behaviour.asked.append(body.model_dump(exclude_unset=True))
        if behaviour.refusal:
            status, content, headers = behaviour.refusal
            return JSONResponse({"error": content}, status_code=status, headers=headers)
        return StreamingResponse(stream(behaviour, body), media_type="text/event-stream")

    return api


def error(status: int, kind: str, message: str) -> JSONResponse:
    """An error in the server's shape."""
    return JSONResponse({"error": {"type": kind, "field": None, "message": message}}, status_code=status)


async def stream(behaviour: Behaviour, body: CompareRequest) -> AsyncIterator[str]:
    """The events of all methods, word by word in turn."""
    try:
        yield ": hello\r\n\r\n"
        for name in body.methods:
            if METHODS[name].retrieves and name not in behaviour.failing:
                yield event("passages", method=name, passages=passages(behaviour, body, None), milliseconds=5.2)
        for number in range(len(behaviour.words)):
            await asyncio.sleep(behaviour.pause if behaviour.hang != number else 3600)
            for name in body.methods:
                if name not in behaviour.failing:
                    yield event("token", method=name, text=behaviour.said(name)[number])
        for name in () if behaviour.cut else body.methods:
            if name in behaviour.failing:
                failure = {
                    "type": "too_long",
                    "field": "question",
                    "message": "the prompt is longer than the model's window",
                }
                yield event("error", method=name, error=failure)
            else:
                yield event("done", **answer(behaviour, body, name))
        if not behaviour.cut:
            yield event("end")
    except (asyncio.CancelledError, GeneratorExit):
        behaviour.disconnected.set()
        raise


def event(name: str, **data: Any) -> str:
    """One server-sent event."""
    return f"event: {name}\r\ndata: {json.dumps(data)}\r\n\r\n"


def passages(behaviour: Behaviour, body: CompareRequest, method: str | None) -> list[dict[str, Any]]:
    """The passages, with tier and contribution once the answer is there."""
    gradients = method is not None and METHODS[method].applies_gradients
    parts = {"leave_one_out": (6.31, -0.42, 0.08), "norms": (0.93, 0.88, 0.74)}.get(body.contributions or "", ())
    return [
        {
            "id": passage[0],
            "title": passage[1],
            "text": passage[2],
            "score": 11.37 / (number + 1),
            "sources": [
                {"name": "bm25", "rank": number + 1, "score": 11.37 / (number + 1)},
                {"name": "dense", "rank": 3 - number, "score": 0.4137},
            ],
            "tier": ("memory", "disk", "store")[number % 3] if gradients else None,
            "contribution": parts[number % 3] if gradients and parts else None,
        }
        for number, passage in enumerate(behaviour.passages[: body.k])
    ]


def answer(behaviour: Behaviour, body: CompareRequest, name: str) -> dict[str, Any]:
    """A made-up `AnswerResponse`."""
    method = METHODS[name]
    retrieve, load, queue, prefill, decode = TIMES[name]
    stages = {"retrieve": retrieve, "load": load, "queue": queue, "prefill": prefill, "decode": decode}
    prompt = 134 if method.passages_in_prompt else 13
    completion = len(behaviour.words)
    note = {"policy": "zero", "reason": "the bank has no gradient of the passage", "passage_ids": ["les-gutror"]}
    return {
        "id": "c0ffee42-" + name,
        "answer": "".join(behaviour.said(name)),
        "finish_reason": "stop",
        "method": name,
        "k": body.k if method.retrieves else 0,
        "gamma": body.gamma,
        "passages": passages(behaviour, body, name) if method.retrieves else [],
        "release": "main",
        "bank_version": "3" if method.applies_gradients else None,
        "degraded": [note] if name in behaviour.degraded else [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        "batch_size": len(body.methods),
        "milliseconds": {**stages, "generate": prefill + decode, "total": sum(stages.values()) + 0.8},
    }


@contextmanager
def serving(behaviour: Behaviour, prefix: str = "") -> Iterator[str]:
    """The application on a free port of this machine, in a thread; gives its address, ending in a slash."""
    api = stand_in(behaviour)
    if prefix:
        inner, api = api, FastAPI()
        api.mount(prefix, inner)
    settings = uvicorn.Config(api, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = Deadline(20)
    while not server.started and not deadline.over:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}{prefix}/"
    finally:
        server.should_exit = True
        thread.join(20)
