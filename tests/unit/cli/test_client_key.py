"""Commands that speak to a server which wants an API key."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from regrad.cli.serve import releases_at
from regrad.client import API_KEY, AnswerClient
from regrad.errors import ServeError
from tests.tools.refusals import refused

KEY = "rg_right"


@pytest.fixture
def url() -> Iterator[str]:
    """A server that lets in who has the key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            known = self.headers.get_all("authorization") == [f"Bearer {KEY}"]
            body = {"releases": [{"name": "main"}]} if known else {"error": {"message": "an API key is needed"}}
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        do_POST = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_the_key_of_the_environment_is_sent(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, f" {KEY}\n")
    assert AnswerClient(url).answer("Where?") == {"releases": [{"name": "main"}]}
    assert releases_at(url) == [{"name": "main"}]


@pytest.mark.parametrize("key", ["", "rg_wrong"])
def test_without_the_right_one_it_is_said_where_to_put_it(url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, key)
    for ask in (lambda: AnswerClient(url).answer("Where?"), lambda: releases_at(url)):
        with refused(ServeError, "unauthorized", status=401) as error:
            ask()
        assert API_KEY in str(error.value) and "rg_wrong" not in str(error.value)
