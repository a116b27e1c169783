"""The gateway and Serve: what a `user_config` does to a replica that starts, and to one that is up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from regrad.errors import BankError, ConfigError, RegradError
from serve_app.auth.gate import _caller
from serve_app.config import ServeConfig
from serve_app.gateway import Gateway
from serve_app.messages import Answered, Ask, Event, Piece, Reply
from tests.tools.releasing import commit, meta_init, setup


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    return setup(tmp_path)


def list_of(config: ServeConfig, **fields: Any) -> dict[str, Any]:
    return {"releases": [{"name": "set", "meta_init": config.meta_init, "bank": config.bank, **fields}]}


def with_gateway(config: ServeConfig, scenario: Callable[[Gateway], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(scenario(Gateway(config, Mock(), Mock(), Mock())), 30)

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
    async def pieces(ask: Ask) -> AsyncGenerator[Event]:
        yield Piece("Thom")
        yield Piece("ville")
        yield Reply(ask, Answered("Thomville", "stop", 14, 5, None, "main"))

    async def scenario(gateway: Gateway) -> None:
        gateway._router.stream = pieces  # type: ignore[method-assign, assignment]
        _caller.set(tab)  # type: ignore[arg-type]
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
