"""Everything that stands in front of the application, put together."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regrad.config import ProtectionConfig
from serve_app.protection.gate import KeyGate
from serve_app.protection.key_file import KeyStore

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
