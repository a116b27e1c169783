"""The HTTP application: routes, errors and middleware around whatever answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from regrad.errors import MethodError
from regrad.registry import Registry
from serve_app.auth.gate import is_open, protect
from serve_app.config import ServeConfig
from serve_app.http.calls import Answering
from serve_app.http.docs import DESCRIPTION, with_keys
from serve_app.http.errors import Problem, Refused
from serve_app.http.middleware import BodyLimit, Full, LastErrors, Requests
from serve_app.http.native import add_native_routes
from serve_app.http.openai import add_openai_routes
from serve_app.http.pages import add_pages
from serve_app.offers import offers_of

_NOT_JSON = Problem("invalid_json", 400, "body", "the body is not JSON")
_NOT_SAID_TO_BE_JSON = Problem("unsupported_media_type", 415, "body", "send the body as content-type: application/json")
_CLIENT_LEFT = 499


def make_app(config: ServeConfig, answering: Callable[[], Answering]) -> ASGIApp:
    """The whole application of one server, behind its keys; `answering` is called within requests.

    Raises as `protect`.
    """
    api = _make_api(config, answering)
    add_pages(api)
    return Requests(protect(api, config.protection), config.limits.request_seconds, answering)


def _make_api(config: ServeConfig, answering: Callable[[], Answering]) -> FastAPI:
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
    return api


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _NOT_JSON.response()
    if isinstance(error.body, bytes):
        return _NOT_SAID_TO_BE_JSON.response()
    field = ".".join(str(part) for part in first["loc"][1:])[:80] or "body"
    message = first["msg"].removeprefix("Value error, ")
    return Problem("invalid_request", 422, field, f"{field}: {message}").response()


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
    return Response(status_code=_CLIENT_LEFT)
