"""Calls on behalf of a client: what answers them, deadlines, disconnects, and server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar, cast

from fastapi import Depends, Header, Request
from fastapi.sse import format_sse_event
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.http.errors import Problem, Refused, RequestRecord, reported
from serve_app.messages import Ask, Reply, StreamEvent


class Answering(Protocol):
    """What the HTTP routes need: the gateway, or a stand-in in tests. Errors are raised (see `http.errors`)."""

    async def answer(self, ask: Ask) -> Reply:
        """The whole answer."""
        ...

    def stream(self, ask: Ask) -> AsyncIterator[StreamEvent]:
        """`Retrieved` (if the method retrieves), then any number of `Piece`, then one `Reply`."""
        ...

    async def releases(self) -> list[dict[str, object]]:
        """The current releases, with their banks' versions, counts and shares, the main one first."""
        ...

    @property
    def full(self) -> bool:
        """Whether one more request would be refused: then it is not even read."""
        ...

    async def missing(self) -> list[str]:
        """The deployments that an answer needs and that have no running replica; empty if the server is ready."""
        ...

    def refused(self, record: RequestRecord) -> None:
        """Count and log a request that was refused before it got to `answer` or `stream`."""
        ...


T = TypeVar("T")
_MAX_TRACEPARENT = 200


@dataclass(frozen=True)
class Client:
    """The client of a request: its id, its deadline, and what its protocol calls the question."""

    receive: Receive
    request_id: str
    deadline: float
    question_field: str = "question"
    traceparent: str = ""

    @property
    def seconds(self) -> float:
        """What is left of its time."""
        return max(0.0, self.deadline - asyncio.get_running_loop().time())

    def problem(self, error: BaseException) -> Problem:
        """An error as the client gets it; details that it does not get are logged."""
        problem = reported(error, self.request_id)
        return problem._replace(field=self.question_field) if problem.field == "question" else problem


async def client_of(
    request: Request,
    x_request_timeout: Annotated[
        float | None,
        Header(gt=0, allow_inf_nan=False, description="seconds to wait for the answer, below the server's limit"),
    ] = None,
    x_request_id: Annotated[
        str | None, Header(description="the request's id: at most 64 of A-Z a-z 0-9 . _ -; other characters become _")
    ] = None,
) -> Client:
    """The client of this request (a dependency of the routes)."""
    seconds: float = request.state.request_seconds
    if x_request_timeout is not None:
        seconds = min(seconds, x_request_timeout)
    traceparent = request.headers.get("traceparent", "")[:_MAX_TRACEPARENT]
    deadline = asyncio.get_running_loop().time() + seconds
    return Client(request.receive, request.state.request_id, deadline, traceparent=traceparent)


ClientOf = Annotated[Client, Depends(client_of)]


async def attempt(client: Client, work: Callable[[], Awaitable[T]]) -> T | Problem:
    """The work's result within the client's time, or why there is none."""
    try:
        async with asyncio.timeout_at(client.deadline):
            return await work()
    except (Exception, asyncio.CancelledError) as error:
        # A call that Ray has cancelled is an error like others; the cancellation of this task is not.
        if cancelled_from_outside():
            raise
        return client.problem(error)


async def unless_client_leaves(client: Client, work: Awaitable[T]) -> T:
    """The result of the work, which is cancelled if the client disconnects (then `ClientDisconnect` is raised)."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.create_task(left(client.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await end(task, leaving)


async def left(receive: Receive) -> None:
    """Returns when the client has disconnected. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks and wait until they are over; their results and errors are dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def cancelled_from_outside() -> bool:
    """Whether the current task itself was cancelled, and not only something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


EventOrProblem = StreamEvent | Problem
Events = AsyncGenerator[tuple[str, EventOrProblem], None]
Chunks = AsyncGenerator[bytes, None]

# How much longer than its request's time a response may take to be read by the client.
GRACE_SECONDS = 10.0


async def merged_events(client: Client, streams: Mapping[str, Callable[[], AsyncIterator[StreamEvent]]]) -> Events:
    """The events of all streams as they come, each with its stream's name; one that fails ends with a `Problem`.

    One task for each stream opens, reads and closes it. Events wait in memory until the client takes them (they are
    no more than the answers' tokens), so a slow reader keeps no generator busy.
    """
    queue: asyncio.Queue[tuple[str, EventOrProblem | None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(client, name, stream, queue)) for name, stream in streams.items()]
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
    client: Client,
    name: str,
    stream: Callable[[], AsyncIterator[StreamEvent]],
    queue: asyncio.Queue[tuple[str, EventOrProblem | None]],
) -> None:
    try:
        async with (
            asyncio.timeout_at(client.deadline),
            aclosing(cast(AsyncGenerator[StreamEvent, None], stream())) as events,
        ):
            last: StreamEvent | None = None
            async for last in events:
                queue.put_nowait((name, last))
            if not isinstance(last, Reply):
                raise RuntimeError("a stream ended without its reply")
    except (Exception, asyncio.CancelledError) as error:
        if cancelled_from_outside():
            raise
        queue.put_nowait((name, client.problem(error)))
    queue.put_nowait((name, None))


async def opened(client: Client, events: Events, render: Callable[[Events], Chunks], silent: Any = ()) -> EventStream:
    """The response that `render` makes of the events, once there is one of another kind than `silent`.

    Raises `Refused` if that one is a problem: as long as nothing was sent, an error can still have its HTTP status.
    """

    async def next_event() -> tuple[str, EventOrProblem]:
        async for item in events:
            if not isinstance(item[1], silent):
                return item
        raise RuntimeError("there were no events")

    async def all_events() -> Events:
        yield first
        async for item in events:
            yield item

    first = await unless_client_leaves(client, next_event())
    if isinstance(first[1], Problem):
        await events.aclose()
        raise Refused(first[1])
    return EventStream(client, render(all_events()), events)


def sse(data: Any, event: str | None = None) -> bytes:
    """One event; what is not a string goes as JSON (numbers that JSON does not know as null)."""
    text = data if isinstance(data, str) else to_json(data, inf_nan_mode="null").decode()
    return format_sse_event(data_str=text, event=event)


class EventStream(Response):
    """A stream of server-sent events. However it ends, what it was made from is closed."""

    media_type = "text/event-stream"

    def __init__(self, client: Client, chunks: Chunks, events: Events) -> None:
        super().__init__(None, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._client, self._chunks, self._events = client, chunks, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end, the client disconnects, or it has read too slowly."""
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(left(receive))
        patience = self._client.seconds + GRACE_SECONDS
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
