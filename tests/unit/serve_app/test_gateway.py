"""The gateway and Serve: what a `user_config` does to its replica, and how it knows what is running behind it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from regrad.errors import BankError, ConfigError, RegradError
from serve_app import gateway
from serve_app.auth.gate import caller_at_hand
from serve_app.config import ServeConfig
from serve_app.gateway import Gateway, Readiness, without_replicas
from serve_app.messages import Answered, Ask, Piece, Reply, StreamEvent
from tests.tools.releasing import commit, meta_init, setup


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    return setup(tmp_path)


def list_of(config: ServeConfig, **fields: Any) -> dict[str, Any]:
    return {"releases": [{"name": "set", "meta_init": config.meta_init, "bank": config.bank, **fields}]}


def with_gateway(config: ServeConfig, scenario: Callable[[Gateway], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario(Gateway(config, Mock(), Mock(), Mock()))

    asyncio.run(run())


async def named(gateway: Gateway) -> list[object]:
    return [release["name"] for release in await gateway.releases()]


WRONG: list[tuple[Any, type[RegradError]]] = [
    ({"bank": "/nowhere/at/all"}, BankError),
    ({"share": 7}, ConfigError),
]


@pytest.mark.parametrize(("fields", "error"), WRONG)
def test_a_wrong_user_config_stops_a_new_replica(config: ServeConfig, fields: Any, error: type[RegradError]) -> None:
    async def scenario(gateway: Gateway) -> None:
        with pytest.raises(error):
            await gateway.reconfigure(list_of(config, **fields))

    with_gateway(config, scenario)


@pytest.mark.parametrize(("fields", "error"), WRONG)
def test_a_wrong_user_config_leaves_a_replica_that_is_up_alone(
    config: ServeConfig, fields: Any, error: type[RegradError], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(gateway: Gateway) -> None:
        await gateway.reconfigure(list_of(config))
        await gateway.check_health()
        await gateway.reconfigure(list_of(config, **fields))
        assert await named(gateway) == ["set"]
        assert "the last good releases stay" in caplog.text
        await gateway.reconfigure(list_of(config, name="better"))
        assert await named(gateway) == ["better"]
        await gateway.reconfigure(None)
        assert await named(gateway) == ["main"]

    with_gateway(config, scenario)


class Tab:
    """A caller who is charged."""

    key_id, tokens = "k", 0

    def charge(self, tokens: int) -> None:
        self.tokens += tokens


@pytest.mark.parametrize(("read", "charged"), [(1, 1), (2, 2), (3, 5)], ids=["one piece", "two pieces", "to the end"])
def test_who_leaves_a_stream_pays_for_what_was_read(config: ServeConfig, read: int, charged: int) -> None:
    async def pieces(ask: Ask) -> AsyncGenerator[StreamEvent]:
        yield Piece("Thom")
        yield Piece("ville")
        yield Reply(ask, Answered("Thomville", "stop", 14, 5, None, "main"))

    async def scenario(gateway: Gateway) -> None:
        gateway._router.stream = pieces  # type: ignore[method-assign, assignment]
        caller_at_hand.set(tab)  # type: ignore[arg-type]
        async with contextlib.aclosing(gateway.stream(Ask("Where?"))) as events:
            for _ in range(read):
                await anext(events)

    tab = Tab()
    with_gateway(config, scenario)
    assert tab.tokens == charged


def test_a_gateway_that_nobody_asks_follows_too(config: ServeConfig, tmp_path: Path) -> None:
    async def scenario(gateway: Gateway) -> None:
        await gateway.check_health()
        label = commit(tmp_path / "bank", meta_init(tmp_path / "again"), seed=2).label
        while (await gateway.releases())[0]["bank_version"] != label:
            await asyncio.sleep(0.02)

    with_gateway(config, scenario)


class Opened:
    """A deployment that remembers what it was to open, and what was current then."""

    def __init__(self, follower: Callable[[], list[int]]) -> None:
        self._follower = follower
        self.asked: list[tuple[list[int], list[int]]] = []
        self.open = SimpleNamespace(remote=self._open)

    def options(self, **_: Any) -> Any:
        return self

    async def _open(self, releases: Any) -> None:
        self.asked.append(([release.bank_version for release in releases], self._follower()))


@pytest.mark.parametrize("fails", [False, True], ids=["open", "gone"])
def test_a_new_version_is_opened_before_questions_go_to_it(config: ServeConfig, tmp_path: Path, fails: bool) -> None:
    async def run() -> None:
        loader, generator = (Opened(lambda: [one.bank_version for one in made._follower.releases]) for _ in range(2))
        if fails:
            loader.open = SimpleNamespace(remote=Mock(side_effect=RuntimeError("there is none")))
        made = Gateway(config, Mock(), loader, generator)  # type: ignore[arg-type]
        await made.check_health()
        label = commit(tmp_path / "bank", meta_init(tmp_path / "again"), seed=2).label
        while (await made.releases())[0]["bank_version"] != label:
            await asyncio.sleep(0.02)
        assert fails or loader.asked == generator.asked == [([2], [1])]

    asyncio.run(run())


def test_a_deployment_without_a_running_replica_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    states: dict[str, dict[str, int]] = {
        "retriever": {"RUNNING": 2},
        "bank_loader": {"STARTING": 1},
        "gateway": {"RUNNING": 1},
    }
    deployments = {name: SimpleNamespace(replica_states=found) for name, found in states.items()}
    status = SimpleNamespace(applications={"mine": SimpleNamespace(deployments=deployments)})
    monkeypatch.setattr(gateway.serve, "status", lambda: status)
    monkeypatch.setattr(gateway.serve, "get_replica_context", lambda: SimpleNamespace(app_name="mine"))
    assert without_replicas(["retriever", "bank_loader", "generator"]) == ["bank_loader", "generator"]
    assert without_replicas(["retriever"]) == []


def test_a_gateway_with_both_in_its_process_needs_the_generator_alone(
    config: ServeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RetrieverDeployment", "BankLoaderDeployment"):
        monkeypatch.setattr(gateway, name, Mock())
    monkeypatch.setattr(gateway.serve, "status", Mock(side_effect=RuntimeError("no controller")))

    async def missing(*handles: Any) -> list[str]:
        return await Gateway(config, *handles, Mock()).missing()

    assert asyncio.run(missing(None, None)) == ["generator"]
    assert asyncio.run(missing(Mock(), Mock())) == ["retriever", "bank_loader", "generator"]


def test_it_looks_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    async def run() -> None:
        ready = Readiness((), lambda _: looks.append(1) or [])  # type: ignore[func-returns-value]
        assert await asyncio.gather(*(ready.missing() for _ in range(20))) == [[]] * 20
        assert await ready.missing() == []
        assert len(looks) == 1
        monkeypatch.setattr(gateway, "_KEEP_SECONDS", 0.0)
        await ready.missing()
        assert len(looks) == 2

    asyncio.run(run())


def test_what_was_known_stays_if_the_controller_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "_KEEP_SECONDS", 0.0)
    monkeypatch.setattr(gateway, "_WAIT_SECONDS", 0.05)
    said: Any = RuntimeError("no controller")
    free, looks = threading.Event(), list[int]()

    def look(_: object) -> list[str]:
        looks.append(1)
        if said is None:
            free.wait(30)
            return []
        if isinstance(said, Exception):
            raise said
        return list(said)

    async def run() -> None:
        nonlocal said
        ready = Readiness(("generator",), look)
        assert await ready.missing() == ["generator"], "nothing is known yet"
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
