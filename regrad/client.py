"""A client of a running server, for one question or many at once. Its API key is in `REGRAD_API_KEY`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from urllib3.exceptions import ProtocolError

from regrad.errors import ServeError

API_KEY = "REGRAD_API_KEY"
_TIMEOUT_SECONDS = 120
_TRIES = 3


def with_key(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Put the environment's key, if there is one, on a request. As `auth=with_key` it has precedence over .netrc."""
    if key := os.environ.get(API_KEY, "").strip():
        request.headers["Authorization"] = f"Bearer {key}"
    return request


class AnswerClient:
    """A client of `POST /v1/answer` at one base URL (with the route prefix, if any)."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._local = threading.local()  # a session is not safe to share between threads

    def answer(self, question: str, **options: Any) -> dict[str, Any]:
        """The server's answer as a mapping; raises `ServeError` with the server's own message.

        Answering changes nothing, so a request whose connection ends before the answer is there is made again, twice
        at most: a gateway that dies, or goes while a server becomes smaller, costs no answer.
        """
        body = {"question": question, **options}
        failure = requests.RequestException()
        for _ in range(_TRIES):
            try:
                return _checked(self._session().post(f"{self._url}/v1/answer", json=body, timeout=_TIMEOUT_SECONDS))
            except requests.RequestException as error:
                failure = error
                if not _cut_off(error):
                    break
        raise self._failed(failure) from failure

    def _failed(self, error: requests.RequestException) -> ServeError:
        if isinstance(error, requests.ConnectionError) and not _cut_off(error):
            text = f"no server answers at {self._url}; start one with `regrad serve`"
            return ServeError(text, code="no_server", url=self._url)
        return ServeError(f"the request to {self._url} failed: {error}", code="request_failed", url=self._url)

    def answer_many(
        self, requests_: Sequence[dict[str, Any]], concurrency: int, done: Callable[[], None] = lambda: None
    ) -> list[dict[str, Any]]:
        """Answers in order, `concurrency` at a time; raises the first error."""

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            answer = self.answer(**request)
            done()
            return answer

        with ThreadPoolExecutor(concurrency) as threads:
            return list(threads.map(ask, requests_))

    def _session(self) -> requests.Session:
        # One a thread: a session keeps its connection open, and is not safe for threads.
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.auth = with_key
        session: requests.Session = self._local.session
        return session


def _cut_off(error: requests.RequestException) -> bool:
    """Whether the connection was there, and ended without the whole answer."""
    return bool(error.args) and isinstance(error.args[0], ProtocolError)


def _checked(response: requests.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = {}
    if response.ok and isinstance(body, dict):
        return body
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else response.text[:200].strip()
    hint = f" ({API_KEY} holds the key that this command sends)" if response.status_code == 401 else ""
    text = f"the server refused (HTTP {response.status_code}): {message}{hint}"
    code = "unauthorized" if response.status_code == 401 else "refused"
    raise ServeError(text, code=code, status=response.status_code, message=message)
