"""The web page at `/` and the API's at `/docs`: files that are read once, with headers that forbid any other source.

They are those of `serve_app/web`, and Swagger UI from the package fastapi-offline: no page needs the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

from fastapi import FastAPI, HTTPException, Request, Response

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
_DOCS_POLICY = CONTENT_SECURITY_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
_SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"
_DOCS = "docs.html"


class WebFile(NamedTuple):
    """One file of the page; `etag` is of its content, so that it is the same on every replica."""

    content: bytes
    media_type: str
    etag: str


def add_pages(api: FastAPI) -> None:
    """Serve `/` with its files at `/web/{file}`, and `/docs`; links are relative, so any route prefix works."""
    web_files = read_web_files()
    swagger_ui = {name: _web_file(files("fastapi_offline").joinpath("static", name)) for name in _SWAGGER_UI}

    async def page(request: Request) -> Response:
        return _respond(request, web_files[_INDEX])

    async def web_file(request: Request, name: str) -> Response:
        if name not in web_files:
            raise HTTPException(404, f"the page has no file {name!r:.60}")
        return _respond(request, web_files[name])

    async def docs(request: Request) -> Response:
        return _respond(request, web_files[_DOCS], _DOCS_POLICY)

    async def docs_file(request: Request, name: str) -> Response:
        if name not in swagger_ui:
            raise HTTPException(404, f"the page has no file {name!r:.60}")
        return _respond(request, swagger_ui[name], _DOCS_POLICY)

    routes: dict[str, Callable[..., Any]] = {
        "/": page,
        "/web/{name}": web_file,
        "/docs": docs,
        "/docs/{name}": docs_file,
    }
    for path, endpoint in routes.items():
        api.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)


def read_web_files() -> dict[str, WebFile]:
    """Every file of `serve_app/web` that browsers may load, by name."""
    found = {}
    for entry in files("serve_app").joinpath("web").iterdir():
        if _suffix(entry.name) in _TYPES and entry.is_file():
            found[entry.name] = _web_file(entry)
    return found


def _web_file(entry: Traversable) -> WebFile:
    content = entry.read_bytes()
    return WebFile(content, _TYPES[_suffix(entry.name)], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _respond(request: Request, file: WebFile, policy: str = CONTENT_SECURITY_POLICY) -> Response:
    """The file, or 304 if the browser has it. `no-cache`: it asks each time, so the files always fit each other."""
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "etag": file.etag,
    }
    held = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if file.etag in held or "*" in held:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
