"""One call to what answers: it ends when it is done, when its time is up, or when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from serve_app.api.errors import Problem, reported

T = TypeVar("T")
_LONGEST_TRACEPARENT = 200


@dataclass(frozen=True)
class Caller:
    """Who asks: the request's id, until when it must be answered, and what its protocol calls the question."""

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
        """What the caller is told of an error; what it is not told is logged."""
        problem = reported(error, self.request_id)
        return problem._replace(field=self.question_field) if problem.field == "question" else problem


async def caller(
    request: Request,
    x_request_timeout: Annotated[
        float | None,
        Header(gt=0, allow_inf_nan=False, description="seconds to wait for the answer, if less than the server's own"),
    ] = None,
    x_request_id: Annotated[
        str | None, Header(description="the request's id, 64 of A-Z a-z 0-9 . _ - at most; other characters become _")
    ] = None,
) -> Caller:
    """The caller of this request (a dependency of the routes)."""
    seconds: float = request.state.request_seconds
    if x_request_timeout is not None:
        seconds = min(seconds, x_request_timeout)
    traceparent = request.headers.get("traceparent", "")[:_LONGEST_TRACEPARENT]
    deadline = asyncio.get_running_loop().time() + seconds
    return Caller(request.receive, request.state.request_id, deadline, traceparent=traceparent)


CallerOf = Annotated[Caller, Depends(caller)]


async def attempt(caller: Caller, work: Callable[[], Awaitable[T]]) -> T | Problem:
    """What the work gives within the caller's time, or why it gave nothing."""
    try:
        async with asyncio.timeout_at(caller.deadline):
            return await work()
    except (Exception, asyncio.CancelledError) as error:
        if cancelled_from_outside():
            raise
        return caller.problem(error)


async def watched(caller: Caller, work: Awaitable[T]) -> T:
    """The result of the work, which is cancelled when the client leaves (`ClientDisconnect` is raised then)."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.create_task(left(caller.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await end(task, leaving)


async def left(receive: Receive) -> None:
    """Returns when the client has left. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks and wait until they are over; their results and errors are dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def cancelled_from_outside() -> bool:
    """Whether the current task was told to stop (and not only something that it waits for)."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
