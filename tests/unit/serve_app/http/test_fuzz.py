"""Ten thousand bodies that nobody should send, from a fixed seed: none of them may be the server's fault."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import httpx2
import pytest

from tests.tools.answering import StandIn, api_of

BODIES = 10_000
VALID: list[tuple[str, dict[str, Any]]] = [
    ("/v1/answer", {"question": "Where?", "k": 2, "gamma": 0.5, "stop": ["x"], "passage_ids": ["p1"], "seed": 1}),
    ("/v1/answer", {"question": "Where?", "method": "rag", "stream": True, "temperature": 0.5, "top_p": 0.5}),
    ("/v1/compare", {"question": "Where?", "methods": ["rag", "direct"], "contributions": "norms"}),
    ("/v1/compare", {"question": "Where?", "stream": True, "release": "main", "max_new_tokens": 5}),
    ("/v1/completions", {"model": "rag", "prompt": "x", "max_tokens": 5, "stop": "x", "n": 1, "logit_bias": {}}),
    (
        "/v1/chat/completions",
        {
            "model": "regrad",
            "messages": [
                {"role": "system", "content": "x"},
                {"role": "user", "content": [{"type": "text", "text": "y"}]},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "response_format": {"type": "text"},
        },
    ),
]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.0, -0.0, 1e308, -1e-320,
    float("nan"), float("inf"), float("-inf"), "", " ", "\x00", "\ud800", "\udfff\ud800", "\u202e", "\ufeff",
    "\U0010ffff", "a" * 5000, "regrad", "direct", "null", "../../etc/passwd", "{{7*7}}", "%s%n", "'; --",
    [], {}, [[]], [None], {"": {}}, {"\ud800": 1}, {"\x00": 1}, ["p1"] * 1000, [{"role": "user", "content": "x"}],
    [{"type": "text", "text": "\ud800"}],
]  # fmt: skip
KINDS = ["application/json"] * 20 + [
    "text/plain",
    "application/vnd.x+json",
    "multipart/form-data",
    "application/",
    "\xff",
]


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A value of JSON, or nearly."""
    kind = rng.random()
    if depth > 4 or kind < 0.6:
        return rng.choice(ODD)
    if kind < 0.8:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = ["question", "messages", "content", "role", "k", "type", "text", "\ud800", ""]
    return {rng.choice(keys): anything(rng, depth + 1) for _ in range(rng.randrange(4))}


def mutated(rng: random.Random, value: Any) -> Any:
    """The value with something in it replaced, added, removed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        copy, key = dict(value), rng.choice(list(value))
        action = rng.randrange(4)
        if action == 0:
            del copy[key]
        elif action == 1:
            copy[rng.choice(["", "x", "\ud800", "n", "tools", "k", "seed", "method", "model"])] = anything(rng)
        else:
            copy[key] = mutated(rng, copy[key])
        return copy
    if isinstance(value, list) and value and rng.random() < 0.7:
        copy_of_list = [*value, mutated(rng, rng.choice(value))]
        return copy_of_list if rng.random() < 0.5 else copy_of_list[1:]
    return anything(rng)


def content(rng: random.Random, body: Any) -> bytes:
    """The body as bytes, one in five of them damaged."""
    raw = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    damage = rng.random()
    if damage < 0.8:
        return raw
    if damage < 0.85:
        return raw[: rng.randrange(len(raw) + 1)]
    if damage < 0.9:
        position = rng.randrange(len(raw) + 1)
        return raw[:position] + rng.randbytes(3) + raw[position:]
    if damage < 0.94:
        return raw[:-1] + b"," + raw[1:]  # every key twice
    if damage < 0.96:
        opening = rng.choice([b"[", b'{"question":', b'{"a":['])
        return opening * rng.choice([10, 999, 5000]) + b"1" + b"]" * rng.choice([0, 10, 5000])
    if damage < 0.98:
        return json.dumps(body).encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"]))
    return rng.randbytes(rng.randrange(200))


async def statuses(rng: random.Random) -> Counter[tuple[int, str]]:
    found: Counter[tuple[int, str]] = Counter()
    transport = httpx2.ASGITransport(api_of(StandIn()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        for _ in range(BODIES):
            path, body = rng.choice(VALID)
            for _ in range(rng.randrange(3)):
                body = mutated(rng, body)
            raw = content(rng, body)
            headers = {"content-type": rng.choice(KINDS).encode("latin-1")}
            response = await client.post(path, content=raw, headers=headers)
            assert response.status_code < 500, (path, raw, response.text)
            if response.status_code != 200:
                assert set(response.json()["error"]) == {"type", "field", "message", "code", "param"}
                assert len(response.content) < 2000, raw
            elif "event-stream" in response.headers["content-type"]:
                assert '"internal"' not in response.text, (path, raw)
            found[response.status_code, path] += 1
    return found


@pytest.mark.slow
def test_no_body_is_the_servers_fault() -> None:
    found = asyncio.run(statuses(random.Random(5)))
    assert sum(found.values()) == BODIES
    by_status = Counter(status for status, _ in found.elements())
    assert set(by_status) == {200, 400, 404, 415, 422}
    assert by_status[200] > 1000 and by_status[422] > 1000, "the bodies are all of one kind"
