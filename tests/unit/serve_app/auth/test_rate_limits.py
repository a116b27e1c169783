"""Limits of requests and tokens for each key."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.auth.gate import KeyGate, RateLimits
from serve_app.auth.keys import make_key
from serve_app.config import ProtectionConfig
from tests.unit.serve_app.auth.test_auth import NOW, Clock, application, bearer, new_key, served
from tests.unit.serve_app.auth.test_auth import path as path


def test_requests_are_limited_and_let_in_again(path: Path) -> None:
    key, other, clock = new_key(path, requests_per_minute=3), new_key(path), Clock()
    with served(path, clock, requests_per_minute=100) as client:
        replies = [client.post("/v1/answer", headers=bearer(key)) for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429], "a burst passes"
        assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["2", "1", "0", "0"]
        assert replies[0].headers["x-ratelimit-limit-requests"] == "3"
        assert replies[0].headers["x-ratelimit-reset-requests"] == "20s"
        refused = replies[3]
        assert refused.headers["retry-after"] == "20"
        assert refused.json()["error"]["type"] == "rate_limited"
        assert "limit of 3 requests a minute" in refused.json()["error"]["message"]
        assert client.post("/v1/answer", headers=bearer(other)).headers["x-ratelimit-remaining-requests"] == "99"
        clock.seconds += 19.5
        assert client.post("/v1/answer", headers=bearer(key)).headers["retry-after"] == "1"
        clock.seconds += 0.5
        assert client.post("/v1/answer", headers=bearer(key)).status_code == 200
        assert client.post("/v1/answer", headers=bearer(key)).status_code == 429


def test_tokens_are_charged_after_the_answer(path: Path) -> None:
    key, clock = new_key(path, tokens_per_minute=60), Clock()
    with served(path, clock, requests_per_minute=None) as client:
        assert client.post("/v1/answer?tokens=90", headers=bearer(key)).status_code == 200
        refused = client.post("/v1/answer", headers=bearer(key))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "31")
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
        assert "60 tokens a minute" in refused.json()["error"]["message"]
        assert "x-ratelimit-limit-requests" not in refused.headers
        clock.seconds += 31
        assert client.post("/v1/answer", headers=bearer(key)).status_code == 200


def test_a_refusal_for_tokens_costs_no_request() -> None:
    clock = Clock()
    limits, key = RateLimits(2, 60, clock), make_key("a", NOW)[1]
    limits.charge(key, 120)
    assert [limits.admit(key).what for _ in range(5)] == ["tokens"] * 5
    clock.seconds += 61
    assert [limits.admit(key).what for _ in range(3)] == ["", "", "requests"]


@pytest.mark.slow
@pytest.mark.parametrize("per_minute", [1, 7, 59, 60, 601, 100_000])
def test_who_waits_as_told_is_let_in(per_minute: int) -> None:
    clock = Clock()
    limits, key, admitted = RateLimits(per_minute, None, clock), make_key("a", NOW)[1], 0
    while (verdict := limits.admit(key)).retry_after == 0:
        admitted += 1
    assert admitted == per_minute
    for _ in range(100):
        clock.seconds += verdict.retry_after
        assert limits.admit(key).retry_after == 0
        while (verdict := limits.admit(key)).retry_after == 0:
            pass
        assert verdict.retry_after >= 1


def test_an_idle_key_saves_up_one_minute_and_no_more() -> None:
    clock = Clock()
    limits, key = RateLimits(10, None, clock), make_key("a", NOW)[1]
    limits.admit(key)
    clock.seconds += 1_000_000
    assert sum(limits.admit(key).retry_after == 0 for _ in range(50)) == 10


def test_memory_is_bounded_by_the_keys_there_are(path: Path) -> None:
    clock = Clock()
    gate = KeyGate(application(), ProtectionConfig(keys=str(path)), clock, lambda: NOW.timestamp())
    with TestClient(gate) if new_key(path) else None as client:  # type: ignore[union-attr]
        for _ in range(5):
            path.unlink()
            keys = [new_key(path) for _ in range(4)]
            clock.seconds += 2
            for key in keys:
                assert client.post("/v1/answer", headers=bearer(key)).status_code == 200
            for _ in range(20):
                client.post("/v1/answer", headers=bearer(make_key("x", NOW)[0]))
    assert len(gate._limits) <= 5
