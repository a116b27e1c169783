"""What every request goes through: it gets an id, a body that is too large ends it, and no error gets past.

Plain ASGI: nothing here stands between a stream and its reader.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable

from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.http.calls import Answering
from serve_app.http.errors import FULL, Problem, Refused, RequestRecord, record_at_hand, reported

logger = logging.getLogger("ray.serve")

REQUEST_ID = "x-request-id"
_SLOW = Problem("timeout", 408, "body", "the body did not come in the time that a request has")
_ODD = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST = 64


class Requests:
    """Gives a request its id (the caller's, if there is one), and counts and logs it if it is refused.

    It is in front of everything, the keys, too. `seconds` is how long any request may take: routes find it and the id
    in `request.state`. What the gateway itself was asked it has counted already.
    """

    def __init__(self, app: ASGIApp, seconds: float, answering: Callable[[], Answering]) -> None:
        self._app, self._seconds, self._answering = app, seconds, answering
        for name in ("routes", "router"):  # Serve looks for them
            setattr(self, name, getattr(app, name))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = _request_id(Headers(scope=scope).get(REQUEST_ID, ""))
        told = _behind_serve()
        scope.setdefault("state", {}).update(request_id=request_id, request_seconds=self._seconds)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and not told:
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        record = RequestRecord(request_id)
        token = record_at_hand.set(record)
        try:
            await self._app(scope, receive, sending)
        finally:
            record_at_hand.reset(token)
            if record.problem and not record.counted:
                self._count(record)

    def _count(self, record: RequestRecord) -> None:
        try:
            self._answering().refused(record)
        except Exception as error:
            logger.error("request %s: it cannot be counted: %s", record.request_id, type(error).__name__)


class Full:
    """Refuses questions while the server is full, before they are read: what is refused has to cost little."""

    def __init__(self, app: ASGIApp, answering: Callable[[], Answering]) -> None:
        self._app, self._answering = app, answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        asks = scope["type"] == "http" and scope["method"] == "POST"
        app = FULL.response() if asks and self._answering().full else self._app
        await app(scope, receive, send)


class LastErrors:
    """Answers whatever error is left over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            problem = reported(error, scope["state"]["request_id"])
            if started:
                raise
            await problem.response()(scope, receive, sending)


class BodyLimit:
    """Stops reading a body at the limit, or when it has not come whole in the time of a request."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; raises `Refused` if its body is, or says that it is, too large, or comes too slowly."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > self._limit):
            raise self._refused()
        size, whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def receiving() -> Message:
            nonlocal size, whole
            if whole:  # what comes now is that the client leaves, whenever that is
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise Refused(_SLOW) from None
            whole = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self._limit:
                raise self._refused()
            return message

        return await self._app(scope, receiving, send)

    def _refused(self) -> Refused:
        return Refused(Problem("too_large", 413, "body", f"the body is larger than {self._limit} bytes"))


def _behind_serve() -> bool:
    """Whether this is a replica: Serve's own server then adds the request's header to the response, whatever it is."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True


def _request_id(given: str) -> str:
    """The caller's, with `_` for whatever is not plain; or a new one."""
    return _ODD.sub("_", given[:_LONGEST]) or uuid.uuid4().hex
