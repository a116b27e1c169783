"""The HTTP application: routes, errors, and the middleware that every request goes through.

A request gets an id first, the keys of `auth` second; then a full server refuses it, and a body that is too large or
too slow ends it. The middleware is plain ASGI: nothing in it holds up a stream.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable, Iterable
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regrad.errors import MethodError
from regrad.registry import Registry
from regrad.text import hint
from serve_app.auth.gate import is_open, protect
from serve_app.config import ServeConfig
from serve_app.http.calls import Answering
from serve_app.http.errors import FULL, Problem, Refused, RequestRecord, record_at_hand, reported
from serve_app.http.native import add_native_routes
from serve_app.http.openai import add_openai_routes
from serve_app.http.pages import add_pages
from serve_app.http.responses import DESCRIPTION, with_keys
from serve_app.methods import offers_of

logger = logging.getLogger("ray.serve")

REQUEST_ID = "x-request-id"
_SECURITY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_SLOW = Problem("timeout", 408, "body", "the body did not come in the time that a request has")
_ODD = re.compile(r"[^A-Za-z0-9._-]")
_MAX_ID_CHARACTERS = 64
_NOT_JSON = Problem("invalid_json", 400, "body", "the body is not JSON")
_NOT_SAID_TO_BE_JSON = Problem("unsupported_media_type", 415, "body", "send the body as content-type: application/json")
_CLIENT_LEFT = 499


def make_app(config: ServeConfig, answering: Callable[[], Answering]) -> ASGIApp:
    """The whole application of one server, behind its keys; `answering` is called within requests.

    Raises as `protect`.
    """
    api = FastAPI(
        title="regrad",
        description=DESCRIPTION,
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(LastErrors),
            Middleware(Full, answering=answering),
            Middleware(BodyLimit, limit=config.limits.max_body_bytes, seconds=config.limits.request_seconds),
        ],
    )
    offered = Registry("method", MethodError, {name: offer.info for name, offer in offers_of(config).items()})
    add_native_routes(api, config.limits, offered, answering)
    add_openai_routes(api, config.limits, offered, answering)
    if config.protection.keys is not None:
        plain = api.openapi
        api.openapi = lambda: with_keys(plain(), partial(is_open, open_docs=config.protection.open_docs))  # type: ignore[method-assign]
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _refused)
    api.add_exception_handler(ClientDisconnect, _left)
    add_pages(api)
    return Requests(protect(api, config.protection), api, config.limits.request_seconds, answering)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _NOT_JSON.response()
    if isinstance(error.body, bytes):
        return _NOT_SAID_TO_BE_JSON.response()
    field = ".".join(str(part) for part in first["loc"][1:])[:80] or "body"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message += hint(str(first["loc"][-1])[:80], _fields(request))
    return Problem("invalid_request", 422, field, f"{field}: {message}").response()


def _fields(request: Request) -> Iterable[str]:
    """The fields of the route's body; none if it has no body."""
    body = getattr(request.scope.get("route"), "body_field", None)
    fields: Iterable[str] = getattr(body.field_info.annotation, "model_fields", {}) if body else ()
    return fields


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refused):
        return error.problem.response()
    if error.status_code == 400:
        return _NOT_JSON.response()
    if error.status_code == 404:
        return Problem("not_found", 404, "path", "there is no such path").response()
    kind = "method_not_allowed" if error.status_code == 405 else "refused"
    return Problem(kind, error.status_code, "path", str(error.detail)).response(error.headers or {})


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_LEFT)  # for the log: there is no one to send it to


class Requests:
    """Gives a request its id (the caller's, if there is one), and counts and logs it if it is refused.

    It is in front of everything, even of the keys: every response gets the security headers here. `seconds` is how long
    any request may take: routes find it and the id in `request.state`. Errors that the gateway has counted already are
    not counted again. The routes of `api`, the application behind the keys, are shown as its own: Serve looks for them.
    """

    def __init__(self, app: ASGIApp, api: FastAPI, seconds: float, answering: Callable[[], Answering]) -> None:
        self._app, self._seconds, self._answering = app, seconds, answering
        self.routes, self.router = api.routes, api.router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = _ODD.sub("_", given[:_MAX_ID_CHARACTERS]) or uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, request_seconds=self._seconds)
        in_replica = _in_replica()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                _secure(headers)
                if not in_replica:  # there Serve's own server adds it
                    headers[REQUEST_ID] = request_id
            await send(message)

        record = RequestRecord(request_id)
        token = record_at_hand.set(record)
        try:
            await self._app(scope, receive, sending)
        finally:
            record_at_hand.reset(token)
            if record.problem and not record.counted:
                try:
                    self._answering().refused(record)
                except Exception as error:  # the client has its response; counting must not break it
                    logger.error("request %s: it cannot be counted: %s", record.request_id, type(error).__name__)


def _secure(headers: MutableHeaders) -> None:
    """Add the security headers; what a page says of itself stays."""
    for name, value in _SECURITY.items():
        headers.setdefault(name, value)
    if not any("frame-ancestors" in policy for policy in headers.getlist("content-security-policy")):
        headers.append("content-security-policy", "frame-ancestors 'none'")


class Full:
    """Refuses questions while the server is full, before they are read: a refusal must cost little."""

    def __init__(self, app: ASGIApp, answering: Callable[[], Answering]) -> None:
        self._app, self._answering = app, answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        asks = scope["type"] == "http" and scope["method"] == "POST"
        app = FULL.response() if asks and self._answering().full else self._app
        await app(scope, receive, send)


class LastErrors:
    """Answers the errors that nothing else has answered."""

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
    """Stops reading a body at the limit, or when it has not arrived completely in the time of a request."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; raises `Refused` if its body is too large, is announced as such, or comes too slowly."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > self._limit):
            raise self._refused()
        size = 0
        whole = False
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def receiving() -> Message:
            nonlocal size, whole
            if whole:  # the only message left is that the client disconnects, however late
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


def _in_replica() -> bool:
    """Whether this process is a replica of Ray Serve."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True
