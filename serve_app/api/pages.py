"""The web page at `/`: the files of `serve_app/web`, read once, with headers that let nothing else in."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import NamedTuple

from fastapi import FastAPI, HTTPException, Request, Response

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"


class WebFile(NamedTuple):
    """One file of the page; `etag` is of its content, so that it is the same on every replica."""

    content: bytes
    media_type: str
    etag: str


def add_pages(api: FastAPI) -> None:
    """Serve the page at `/` and its files at `/web/{file}`; links are relative, so any route prefix will do."""
    web_files = read_web_files()

    async def page(request: Request) -> Response:
        return _respond(request, web_files[_INDEX])

    async def web_file(request: Request, name: str) -> Response:
        if name not in web_files:
            raise HTTPException(404, f"the page has no file {name!r:.60}")
        return _respond(request, web_files[name])

    for path, endpoint in (("/", page), ("/web/{name}", web_file)):
        api.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)


def read_web_files() -> dict[str, WebFile]:
    """Every file of `serve_app/web` that a browser may have, by name."""
    found = {}
    for entry in files("serve_app").joinpath("web").iterdir():
        media_type = _TYPES.get(entry.name[entry.name.rfind(".") :])
        if media_type is not None and entry.is_file():
            content = entry.read_bytes()
            found[entry.name] = WebFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


def _respond(request: Request, file: WebFile) -> Response:
    """The file, or 304 if the browser has it. `no-cache`: it asks each time, so the files always fit each other."""
    headers = {
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "etag": file.etag,
    }
    held = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if file.etag in held or "*" in held:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
