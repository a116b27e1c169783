"""Where a request may carry its key, and where it may not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_plus

from starlette.types import Scope

from serve_app.protection.key_file import KEY

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
