"""Calls to deployments whose replicas die, and clients that leave: what is asked again, and what is given up."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from ray.exceptions import RayActorError

from regrad.errors import RetrievalError
from serve_app.messages import (
    Ask,
    Piece,
    Reply,
    Retrieved,
    Sampling,
)
from tests.unit.serve_app.test_router import LONG, Deployments, ask_all, read
from tests.unit.serve_app.test_router import no_pause as no_pause


@pytest.mark.parametrize("died", ["retrieve", "load", "answer"])
@pytest.mark.parametrize("sampling", [Sampling(), LONG], ids=["micro-batch", "alone"])
def test_a_replica_that_died_is_asked_again(died: str, sampling: Sampling) -> None:
    deployments = Deployments(**{died: 2})
    (reply,) = ask_all(deployments, [Ask("a", sampling=sampling)])
    assert reply.answered.text == "a True"
    assert len(deployments.calls[died]) == 3


@pytest.mark.parametrize("died", ["retrieve", "answer"])
def test_what_stays_dead_is_an_error(died: str) -> None:
    deployments = Deployments(**{died: 100})
    (error,) = ask_all(deployments, [Ask("a", sampling=LONG)])
    assert isinstance(error, RayActorError)
    assert len(deployments.calls[died]) == 3


@pytest.mark.parametrize("sampling", [Sampling(), LONG], ids=["micro-batch", "alone"])
def test_a_search_in_the_gateway_that_fails_is_the_requests_error_and_the_generator_is_not_asked(
    sampling: Sampling,
) -> None:
    deployments = Deployments(embedded=True, retrieve=100)
    (error,) = ask_all(deployments, [Ask("a", sampling=sampling)])
    assert isinstance(error, RetrievalError)
    assert deployments.calls["answer"] == []


def test_a_stream_shows_what_the_gateway_found_before_it_is_read() -> None:
    events = read(Deployments(embedded=True), Ask("a"))
    assert [type(event) for event in events] == [Retrieved, Piece, Reply]


def test_if_the_loader_stays_dead_the_generator_is_asked_without_it() -> None:
    deployments = Deployments(load=100)
    (reply,) = ask_all(deployments, [Ask("a", sampling=LONG)])
    assert reply.answered.text == "a False"
    assert len(deployments.calls["load"]) == 3
    deployments = Deployments(load=100)
    assert [type(event) for event in read(deployments, Ask("a"))][-2:] == [Piece, Reply]
    assert len(deployments.calls["load"]) == 3


def test_a_stream_is_tried_again_only_before_its_first_piece() -> None:
    deployments = Deployments(stream=1)
    events = read(deployments, Ask("a"))
    assert [type(event) for event in events if not isinstance(event, Retrieved)] == [Piece, Reply]
    assert len(deployments.calls["stream"]) == 2
    deployments = Deployments(stream=1)
    deployments.fails_late = True
    with pytest.raises(RayActorError):
        read(deployments, Ask("a"))
    assert len(deployments.calls["stream"]) == 1


def test_a_client_that_leaves_cancels_its_calls() -> None:
    async def leave(deployments: Deployments) -> None:
        deployments.seconds = 10.0
        task = asyncio.create_task(deployments.router().answer(Ask("a", sampling=LONG)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def leave_while_searching(deployments: Deployments) -> None:
        task = asyncio.create_task(deployments.router().answer(Ask("a", sampling=LONG)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def stop_reading(deployments: Deployments) -> None:
        async with aclosing(deployments.router().stream(Ask("a"))) as events:
            await anext(events)

    for leaving, call in ((leave, "answer"), (stop_reading, "stream")):
        deployments = Deployments()
        asyncio.run(leaving(deployments))
        assert set(deployments.cancelled) == {"retrieve", "load", call}
    deployments = Deployments(embedded=True)
    asyncio.run(leave(deployments))
    assert deployments.cancelled == ["answer"]
    for leaving in (leave_while_searching, stop_reading):
        deployments = Deployments(embedded=True)
        asyncio.run(leaving(deployments))
        assert deployments.calls["answer"] == deployments.calls["stream"] == [], "it was not begun"
