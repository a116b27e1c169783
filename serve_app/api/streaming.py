"""Server-sent events: the events of one or several answers as they come, until the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, cast

from fastapi.sse import format_sse_event
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.api.calling import Caller, cancelled_from_outside, end, left, watched
from serve_app.api.errors import Problem, Refused
from serve_app.messages import Event, Reply

Outcome = Event | Problem
Events = AsyncGenerator[tuple[str, Outcome], None]
Chunks = AsyncGenerator[bytes, None]

# How much longer than its request's time a response may take to be read by the client.
GRACE_SECONDS = 10.0


async def merged(caller: Caller, streams: Mapping[str, Callable[[], AsyncIterator[Event]]]) -> Events:
    """The events of all streams as they come, each with its stream's name; one that fails ends with a `Problem`.

    Each stream is opened, read and closed by one task of its own. What it gives is held until the client takes it
    (no more than the answers' tokens), so a slow reader keeps no generator busy.
    """
    queue: asyncio.Queue[tuple[str, Outcome | None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(caller, name, stream, queue)) for name, stream in streams.items()]
    open_streams = len(tasks)
    try:
        while open_streams:
            name, event = await queue.get()
            if event is None:
                open_streams -= 1
            else:
                yield name, event
    finally:
        await end(*tasks)


async def _pump(
    caller: Caller,
    name: str,
    stream: Callable[[], AsyncIterator[Event]],
    queue: asyncio.Queue[tuple[str, Outcome | None]],
) -> None:
    try:
        async with (
            asyncio.timeout_at(caller.deadline),
            aclosing(cast(AsyncGenerator[Event, None], stream())) as events,
        ):
            last: Event | None = None
            async for last in events:
                queue.put_nowait((name, last))
            if not isinstance(last, Reply):
                raise RuntimeError("a stream ended without its reply")
    except (Exception, asyncio.CancelledError) as error:
        if cancelled_from_outside():
            raise
        queue.put_nowait((name, caller.problem(error)))
    queue.put_nowait((name, None))


async def opened(caller: Caller, events: Events, render: Callable[[Events], Chunks], silent: Any = ()) -> EventStream:
    """The response that `render` makes of the events, once there is one of another kind than `silent`.

    Raises `Refused` if that one is a problem: as long as nothing was sent, an error is an answer of its own.
    """
    first = await watched(caller, _first(events, silent))
    if isinstance(first[1], Problem):
        await events.aclose()
        raise Refused(first[1])
    return EventStream(caller, render(_resumed(first, events)), events)


async def _first(events: Events, silent: Any) -> tuple[str, Outcome]:
    async for item in events:
        if not isinstance(item[1], silent):
            return item
    raise RuntimeError("there were no events")


async def _resumed(first: tuple[str, Outcome], events: Events) -> Events:
    yield first
    async for item in events:
        yield item


def sse(data: Any, event: str | None = None) -> bytes:
    """One event; what is not a string goes as JSON (numbers that JSON does not know as null)."""
    text = data if isinstance(data, str) else to_json(data, inf_nan_mode="null").decode()
    return format_sse_event(data_str=text, event=event)


class EventStream(Response):
    """A stream of server-sent events. When it is over, however that comes, what it was made from is closed."""

    media_type = "text/event-stream"

    def __init__(self, caller: Caller, chunks: Chunks, events: Events) -> None:
        super().__init__(None, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._caller, self._chunks, self._events = caller, chunks, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end, the client leaves, or it reads too slowly."""
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(left(receive))
        patience = self._caller.seconds + GRACE_SECONDS
        try:
            await asyncio.wait({writing, leaving}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            await end(writing, leaving)
            await self._chunks.aclose()
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
