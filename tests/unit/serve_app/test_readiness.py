"""How a gateway knows whether what is behind it runs."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app import readiness
from serve_app.readiness import NEEDED, Readiness, without_replicas


def test_a_deployment_without_a_running_replica_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    states: dict[str, dict[str, int]] = {
        "retriever": {"RUNNING": 2},
        "bank_loader": {"STARTING": 1},
        "gateway": {"RUNNING": 1},
    }
    deployments = {name: SimpleNamespace(replica_states=found) for name, found in states.items()}
    status = SimpleNamespace(applications={"mine": SimpleNamespace(deployments=deployments)})
    monkeypatch.setattr(readiness.serve, "status", lambda: status)
    monkeypatch.setattr(readiness.serve, "get_replica_context", lambda: SimpleNamespace(app_name="mine"))
    assert without_replicas() == ["bank_loader", "generator"]


def test_it_looks_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    async def run() -> None:
        ready = Readiness(lambda: looks.append(1) or [])  # type: ignore[func-returns-value]
        assert await asyncio.gather(*(ready.missing() for _ in range(20))) == [[]] * 20
        assert await ready.missing() == []
        assert len(looks) == 1
        monkeypatch.setattr(readiness, "_KEEP_SECONDS", 0.0)
        await ready.missing()
        assert len(looks) == 2

    asyncio.run(run())


def test_what_was_known_stays_if_the_controller_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_KEEP_SECONDS", 0.0)
    monkeypatch.setattr(readiness, "_WAIT_SECONDS", 0.05)
    said: Any = RuntimeError("no controller")
    free, looks = threading.Event(), list[int]()

    def look() -> list[str]:
        looks.append(1)
        if said is None:
            free.wait(30)
            return []
        if isinstance(said, Exception):
            raise said
        return list(said)

    async def run() -> None:
        nonlocal said
        ready = Readiness(look)
        assert await ready.missing() == list(NEEDED), "nothing is known yet"
        said = []
        assert await ready.missing() == []
        said = RuntimeError("no controller")
        assert await ready.missing() == []
        said, before = None, len(looks)
        for _ in range(3):
            assert await ready.missing() == []
        assert len(looks) == before + 1, "one look at a time"
        free.set()

    asyncio.run(run())
