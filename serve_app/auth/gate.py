"""Who may ask: keys in headers, rate limits, security headers, CORS."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from urllib.parse import unquote_plus

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regrad.errors import RegradError
from serve_app.auth.keys import KEY, BadKey, KeyRecord, KeyRing, KeyStore
from serve_app.auth.rate_limits import RateLimits, Verdict
from serve_app.config import ProtectionConfig
from serve_app.http.errors import Problem, current_record

SECRET_HEADERS = frozenset({b"authorization", b"x-api-key"})
_NAMES = re.compile(r"(?:^|[&;])(?:x-)?(?:api[_-]?key|access_token|authorization)=", re.IGNORECASE)
_LONGEST = 200

Headers = Iterable[tuple[bytes, bytes]]


def presented_key(headers: Headers) -> str | None:
    """The key in `Authorization: Bearer KEY`, or in `x-api-key`; None if there is neither."""
    found = {name: value for name, value in headers if name in SECRET_HEADERS}
    scheme, _, key = found.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        key = found.get(b"x-api-key", b"")
    return key.strip()[:_LONGEST].decode("latin-1") or None


def remove_key_from_address(scope: Scope) -> bool:
    """Whether the address of a request has a key in it, which is then taken out of `scope`.

    A server that writes its access log from the same `scope` afterwards, as uvicorn does, does not write the key.
    """
    found = False
    query = unquote_plus(scope.get("query_string", b"").decode("latin-1"))
    if KEY.search(query) or _NAMES.search(query):
        scope["query_string"], found = b"", True
    if KEY.search(unquote_plus(scope["path"])):
        scope["path"], scope["raw_path"], found = "/", b"/", True
    return found


def without_secrets(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that the application behind may see, and log."""
    return [(name, value) for name, value in headers if name not in SECRET_HEADERS]


logger = logging.getLogger("ray.serve")

_OPEN = frozenset({"/", "/healthz", "/readyz"})
_DOCS = frozenset({"/docs", "/openapi.json"})


def is_open(path: str, open_docs: bool) -> bool:
    """Whether a page may be read without a key."""
    return path in _OPEN or path.startswith("/web/") or (open_docs and (path in _DOCS or path.startswith("/docs/")))


class Caller:
    """Whose key a request came with. `charge` takes the tokens of an answer from what the key may have."""

    def __init__(self, key: KeyRecord, limits: RateLimits) -> None:
        self._key, self._limits = key, limits
        self.key_id, self.name = key.id, key.name

    def charge(self, tokens: int) -> None:
        """Count generated tokens; call it from the event loop."""
        self._limits.charge(self._key, tokens)


_caller: ContextVar[Caller | None] = ContextVar("regrad_caller", default=None)


def current_caller() -> Caller | None:
    """Whose key the request at hand came with, from anywhere in its tasks; None on an open server or page."""
    return _caller.get()


class KeyGate:
    """Pure ASGI, so that streams pass as they come. The keys are read when the application starts."""

    def __init__(
        self, app: ASGIApp, config: ProtectionConfig, clock: Callable[[], float], now: Callable[[], float]
    ) -> None:
        self._app, self._config, self._clock, self._now = app, config, clock, now
        self._limits = RateLimits(config.requests_per_minute, config.tokens_per_minute, clock)
        self._ring: KeyRing | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request here, or pass it on without its key."""
        if scope["type"] == "lifespan":
            await self._start(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _start(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._open_ring()
        except RegradError as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        else:
            await self._app(scope, receive, send)

    async def _open_ring(self) -> KeyRing:
        if self._ring is None:
            ring = await asyncio.to_thread(KeyRing, str(self._config.keys), self._clock, self._now)
            self._ring = self._ring or ring
        return self._ring

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if remove_key_from_address(scope):
            return await _IN_ADDRESS.response()(scope, receive, send)
        if self._is_open(scope):
            return await self._pass_on(scope, receive, send, None, {})
        try:
            key, verdict = await self._check(scope)
        except (BadKey, RegradError) as error:
            return await _refused(error)(scope, receive, send)
        if verdict.retry_after:
            return await _too_many(verdict)(scope, receive, send)
        return await self._pass_on(scope, receive, send, key, verdict.headers)

    async def _check(self, scope: Scope) -> tuple[KeyRecord, Verdict]:
        presented = presented_key(scope["headers"])
        if presented is None:
            raise BadKey("an API key is needed: send it as `Authorization: Bearer KEY`")
        ring = await self._open_ring()
        await ring.refresh()
        key = ring.check(presented)
        if record := current_record():
            record.key_id = key.id
        verdict = self._limits.admit(key)
        if len(self._limits) > len(ring.ids):
            self._limits.keep(ring.ids)
        return key, verdict

    def _is_open(self, scope: Scope) -> bool:
        return scope["method"] in ("GET", "HEAD") and is_open(_route(scope), self._config.open_docs)

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, key: KeyRecord | None, headers: dict[str, str]
    ) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        inner = {**scope, "headers": without_secrets(scope["headers"])}
        token = _caller.set(None if key is None else Caller(key, self._limits))
        try:
            await self._app(inner, receive, with_headers if headers else send)
        finally:
            _caller.reset(token)


_IN_ADDRESS = Problem(
    "key_in_address",
    400,
    "authorization",
    "the address has an API key in it, where logs and histories keep it: send it as `Authorization: Bearer KEY`, and "
    "replace this key, since others may have seen it",
)
_NO_KEYS = "the server cannot read its keys at the moment; its log says more"


def _route(scope: Scope) -> str:
    """The path below where the application is mounted, as Starlette's router takes it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and (path == root or path.startswith(f"{root}/")):
        return path[len(root) :] or "/"
    return path


def _refused(error: BadKey | RegradError) -> JSONResponse:
    if isinstance(error, BadKey):
        problem = Problem("unauthorized", 401, "authorization", str(error))
        return problem.response({"www-authenticate": "Bearer"})
    logger.error("no request can be let in: %s", error)
    return Problem("unavailable", 503, None, _NO_KEYS, retry_after=5).response()


def _too_many(verdict: Verdict) -> JSONResponse:
    limit = verdict.headers[f"x-ratelimit-limit-{verdict.what}"]
    message = f"the key's limit of {limit} {verdict.what} a minute is reached; try again in {verdict.retry_after} s"
    return Problem("rate_limited", 429, None, message, verdict.retry_after).response(verdict.headers)


_ALWAYS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_NO_FRAMES = "frame-ancestors 'none'"
_EXPOSED = (
    *(f"x-ratelimit-{part}-{unit}" for unit in ("requests", "tokens") for part in ("limit", "remaining", "reset")),
    "retry-after",
    "x-request-id",
)


def protect(
    app: ASGIApp,
    config: ProtectionConfig,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> ASGIApp:
    """The application behind keys, rate limits, CORS and security headers.

    Raises `KeyFileError` or `StorageError` if the file of keys cannot be used; it is read again in the process that
    serves, which may be another one. There, handlers find `gate.current_caller()`.
    """
    inner = app
    if config.keys is not None:
        KeyStore(config.keys).records()
        inner = KeyGate(inner, config, clock, now)
    if config.cors_origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=config.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),  # OpenAI's client in a browser sends a dozen of its own
            expose_headers=_EXPOSED,
        )
    return _SecurityHeaders(inner, app)


class _SecurityHeaders:
    """Adds the security headers to every response. Shows the routes of the application, which Serve looks for."""

    def __init__(self, app: ASGIApp, original: ASGIApp) -> None:
        self._app = app
        for name in ("routes", "router"):
            if hasattr(original, name):
                setattr(self, name, getattr(original, name))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
                if not any("frame-ancestors" in policy for policy in headers.getlist("content-security-policy")):
                    headers.append("content-security-policy", _NO_FRAMES)
            await send(message)

        await self._app(scope, receive, with_headers)
