"""Who may ask, and how often: keys in headers, rate limits, CORS.

The application is wrapped by `protect`: CORS around the keys around its routes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_plus

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regrad.errors import RegradError
from serve_app.auth.keys import KEY, BadKey, KeyRecord, KeyRing, KeyStore
from serve_app.config import ProtectionConfig
from serve_app.http.errors import Problem, current_record

logger = logging.getLogger("ray.serve")

SECRET_HEADERS = frozenset({b"authorization", b"x-api-key"})
_NAMES = re.compile(r"(?:^|[&;])(?:x-)?(?:api[_-]?key|access_token|authorization)=", re.IGNORECASE)
_MAX_KEY_CHARACTERS = 200

_OPEN = frozenset({"/", "/healthz", "/readyz"})
_DOCS = frozenset({"/docs", "/openapi.json"})
_IN_ADDRESS = Problem(
    "key_in_address",
    400,
    "authorization",
    "the address contains an API key, which logs and histories keep: send the key as `Authorization: Bearer KEY`, and "
    "replace this one, since others may have seen it",
)
_NO_KEYS = "the server cannot read its keys at the moment; its log says more"
_EXPOSED = (
    *(f"x-ratelimit-{part}-{unit}" for unit in ("requests", "tokens") for part in ("limit", "remaining", "reset")),
    "retry-after",
    "x-request-id",
)

Headers = Iterable[tuple[bytes, bytes]]


def presented_key(headers: Headers) -> str | None:
    """The key in `Authorization: Bearer KEY`, or in `x-api-key`; None if there is neither."""
    found = {name: value for name, value in headers if name in SECRET_HEADERS}
    scheme, _, key = found.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        key = found.get(b"x-api-key", b"")
    return key.strip()[:_MAX_KEY_CHARACTERS].decode("latin-1") or None


def remove_key_from_address(scope: Scope) -> bool:
    """Whether a request's address contained a key, which is then removed from `scope`.

    Servers such as uvicorn write their access log from the same `scope` afterwards, and then without the key.
    """
    found = False
    query = unquote_plus(scope.get("query_string", b"").decode("latin-1"))
    if KEY.search(query) or _NAMES.search(query):
        scope["query_string"] = b""
        found = True
    if KEY.search(unquote_plus(scope["path"])):
        scope["path"], scope["raw_path"] = "/", b"/"
        found = True
    return found


def is_open(path: str, open_docs: bool) -> bool:
    """Whether a page needs no key."""
    return path in _OPEN or path.startswith("/web/") or (open_docs and (path in _DOCS or path.startswith("/docs/")))


class Caller:
    """Whose key a request came with. `charge` takes the tokens of an answer from what the key may have."""

    def __init__(self, key: KeyRecord, limits: RateLimits) -> None:
        self._key, self._limits = key, limits
        self.key_id = key.id
        self.name = key.name

    def charge(self, tokens: int) -> None:
        """Count generated tokens; call it from the event loop."""
        self._limits.charge(self._key, tokens)


caller_at_hand: ContextVar[Caller | None] = ContextVar("regrad_caller", default=None)
"""Whose key the current request came with, from anywhere in its tasks; None on an open server or page."""


class KeyGate:
    """Lets requests with a good key through. Pure ASGI, so that streams pass as they come."""

    def __init__(
        self, app: ASGIApp, config: ProtectionConfig, clock: Callable[[], float], now: Callable[[], float]
    ) -> None:
        self._app, self._config, self._clock, self._now = app, config, clock, now
        self._limits = RateLimits(config.requests_per_minute, config.tokens_per_minute, clock)
        self._ring: KeyRing | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request here, or pass it on without its key."""
        if scope["type"] == "lifespan":  # the application starts: read the keys, or do not start without them
            try:
                await self._open_ring()
            except RegradError as error:
                await receive()
                return await send({"type": "lifespan.startup.failed", "message": str(error)})
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        if remove_key_from_address(scope):
            return await _IN_ADDRESS.response()(scope, receive, send)
        if scope["method"] in ("GET", "HEAD") and is_open(_route(scope), self._config.open_docs):
            return await self._pass_on(scope, receive, send, None, {})
        try:
            key, verdict = await self._check(scope)
        except BadKey as error:
            problem = Problem("unauthorized", 401, "authorization", str(error))
            return await problem.response({"www-authenticate": "Bearer"})(scope, receive, send)
        except RegradError as error:
            logger.error("no request can be let in: %s", error)
            problem = Problem("unavailable", 503, None, _NO_KEYS, retry_after=5)
            return await problem.response()(scope, receive, send)
        if verdict.retry_after:
            return await _too_many(verdict)(scope, receive, send)
        return await self._pass_on(scope, receive, send, key, verdict.headers)

    async def _open_ring(self) -> KeyRing:
        if self._ring is None:
            ring = await asyncio.to_thread(KeyRing, str(self._config.keys), self._clock, self._now)
            self._ring = self._ring or ring  # another request may have been faster
        return self._ring

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
        if len(self._limits) > len(ring.ids):  # buckets of keys that are gone
            self._limits.keep(ring.ids)
        return key, verdict

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, key: KeyRecord | None, headers: dict[str, str]
    ) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        # The application behind neither needs the key nor can log it.
        inner = {**scope, "headers": [header for header in scope["headers"] if header[0] not in SECRET_HEADERS]}
        token = caller_at_hand.set(None if key is None else Caller(key, self._limits))
        try:
            await self._app(inner, receive, with_headers if headers else send)
        finally:
            caller_at_hand.reset(token)


def _route(scope: Scope) -> str:
    """The path below where the application is mounted, as Starlette's router takes it."""
    path = str(scope["path"])
    root = str(scope.get("root_path", ""))
    if root and (path == root or path.startswith(f"{root}/")):
        return path[len(root) :] or "/"
    return path


def _too_many(verdict: Verdict) -> JSONResponse:
    limit = verdict.headers[f"x-ratelimit-limit-{verdict.what}"]
    message = f"the key's limit of {limit} {verdict.what} a minute is reached; try again in {verdict.retry_after} s"
    return Problem("rate_limited", 429, None, message, verdict.retry_after).response(verdict.headers)


@dataclass
class _Bucket:
    """What a key may still use: it holds what a minute allows and fills evenly."""

    level: float
    filled: float

    def fill(self, per_minute: int, now: float) -> None:
        self.level = min(per_minute, self.level + (now - self.filled) * per_minute / 60)
        self.filled = now


class Verdict(NamedTuple):
    """Whether a request may go on: `retry_after` is 0, or the seconds to wait for `what`; `headers` are for either."""

    retry_after: int
    what: str
    headers: dict[str, str]


@dataclass
class RateLimits:
    """Two token buckets a key, for requests and for generated tokens; all calls come from one event loop.

    A burst passes as long as the average is kept. Tokens are known only after an answer: they are charged then, and a
    key that owes some waits until the bucket has filled again.
    """

    requests_per_minute: int | None
    tokens_per_minute: int | None
    clock: Callable[[], float]
    _buckets: dict[str, dict[str, _Bucket]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many keys have buckets."""
        return len(self._buckets)

    def admit(self, key: KeyRecord) -> Verdict:
        """Count one request of a key, if it may be made now."""
        wait = 0.0
        what = ""
        buckets = []
        for unit, per_minute in self._limits(key).items():
            bucket = self._bucket(key.id, unit, per_minute)
            buckets.append((unit, per_minute, bucket))
            missing = (1 - bucket.level) * 60 / per_minute
            if missing > wait + 1e-6:
                wait, what = missing, unit
        if not what and buckets and buckets[0][0] == "requests":
            buckets[0][2].level -= 1
        headers: dict[str, str] = {}
        for unit, per_minute, bucket in buckets:  # as OpenAI's clients read them
            full = math.ceil((per_minute - bucket.level) * 60 / per_minute - 1e-6)
            headers[f"x-ratelimit-limit-{unit}"] = str(per_minute)
            headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, math.floor(bucket.level + 1e-6)))
            headers[f"x-ratelimit-reset-{unit}"] = f"{full}s"
        return Verdict(max(1, math.ceil(wait - 1e-6)) if what else 0, what, headers)

    def charge(self, key: KeyRecord, tokens: int) -> None:
        """Take the tokens of an answer from what a key may still use."""
        per_minute = self._limits(key).get("tokens")
        if per_minute is not None:
            self._bucket(key.id, "tokens", per_minute).level -= tokens

    def keep(self, ids: Collection[str]) -> None:
        """Forget the keys that are not among `ids`."""
        self._buckets = {name: buckets for name, buckets in self._buckets.items() if name in ids}

    def _limits(self, key: KeyRecord) -> dict[str, int]:
        limits = {
            "requests": key.requests_per_minute or self.requests_per_minute,
            "tokens": key.tokens_per_minute or self.tokens_per_minute,
        }
        return {unit: per_minute for unit, per_minute in limits.items() if per_minute is not None}

    def _bucket(self, key_id: str, unit: str, per_minute: int) -> _Bucket:
        now = self.clock()
        bucket = self._buckets.setdefault(key_id, {}).setdefault(unit, _Bucket(per_minute, now))
        bucket.fill(per_minute, now)
        return bucket


def protect(
    app: ASGIApp,
    config: ProtectionConfig,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> ASGIApp:
    """The application behind keys, rate limits and CORS.

    Raises `KeyFileError` or `StorageError` if the file of keys cannot be used; it is read again in the process that
    serves, which may be another one. There, handlers find who asks in `caller_at_hand`.
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
            allow_headers=("*",),  # OpenAI's client in a browser sends a dozen that only it knows
            expose_headers=_EXPOSED,
        )
    return inner
