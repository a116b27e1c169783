"""What a client makes of connections that end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from regrad.client import AnswerClient
from regrad.errors import ServeError
from tests.tools.refusals import refused

BODY = b'{"answer": "London"}'


@contextmanager
def cutting(times: int, kept: int) -> Iterator[tuple[str, list[bytes]]]:
    """A server that ends the first connections after so many bytes of the answer (none: also of the headers); its
    address, and what it was asked."""
    asked: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["content-length"])))
            cut = len(asked) <= times
            if not cut or kept:
                self.send_response(200)
                self.send_header("content-length", str(len(BODY)))
                self.end_headers()
                self.wfile.write(BODY[:kept] if cut else BODY)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kept", [0, 5])
def test_a_question_whose_connection_ends_is_asked_again(kept: int) -> None:
    with cutting(2, kept) as (url, asked):
        assert AnswerClient(url).answer("Where?") == {"answer": "London"}
    assert asked == [b'{"question": "Where?"}'] * 3


@pytest.mark.parametrize("kept", [0, 5])
def test_it_is_not_asked_for_ever(kept: int) -> None:
    with cutting(9, kept) as (url, asked), refused(ServeError, "request_failed", url=url):
        AnswerClient(url).answer("Where?")
    assert len(asked) == 3


def test_where_nobody_listens_nothing_is_tried_again() -> None:
    with cutting(0, 0) as (url, _):
        pass
    with refused(ServeError, "no_server", url=url):
        AnswerClient(url).answer("Where?")
