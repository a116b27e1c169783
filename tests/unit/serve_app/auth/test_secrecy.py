"""That no key gets into the logs or to the application, and that no web page of another origin uses the API."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regrad.errors import ConfigError
from regrad.settings import parse_settings
from serve_app.auth.gate import protect
from serve_app.config import ProtectionConfig
from tests.tools.refusals import refused
from tests.unit.serve_app.auth.test_auth import NOW, application, bearer, listening, new_key, served
from tests.unit.serve_app.auth.test_auth import path as path


def test_web_pages_of_others_are_refused_unless_named(path: Path) -> None:
    key = new_key(path)
    origin = {"origin": "https://ask.example.org"}
    asked = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with served(path) as client:
        assert not _cors(client.post("/v1/answer", headers=bearer(key) | origin))
        assert not _cors(client.options("/v1/answer", headers=asked))
    with served(path, cors_origins=["https://ask.example.org"]) as client:
        assert client.options("/v1/answer", headers=asked).status_code == 200
        allowed = _cors(client.post("/v1/answer", headers=bearer(key) | origin))
        assert allowed["access-control-allow-origin"] == "https://ask.example.org"
        assert "retry-after" in allowed["access-control-expose-headers"].lower()
        assert "access-control-allow-credentials" not in allowed
        assert _cors(client.post("/v1/answer", headers=origin)), "the page can read a refusal"
        other = {"origin": "https://ask.example.org.evil.example"}
        assert "access-control-allow-origin" not in client.post("/v1/answer", headers=bearer(key) | other).headers
        assert client.options("/v1/answer", headers=asked | other).status_code == 400


def _cors(reply: Any) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize("origin", ["*", "ask.example.org", "https://ask.example.org/", "https://*.org", "null", ""])
def test_an_origin_is_exact(origin: str) -> None:
    with refused(ConfigError, "invalid") as error:
        parse_settings(ProtectionConfig, {"cors_origins": [origin]}, "args")
    assert [problem["key"] for problem in error.value.fields["problems"]] == ["cors_origins"]


_PLACES: list[Callable[[str], tuple[str, dict[str, str]]]] = [
    lambda key: ("/v1/answer", bearer(key)),
    lambda key: ("/v1/fail", bearer(key)),
    lambda key: ("/v1/answer", bearer(key[:-1] + "x")),
    lambda key: ("/v1/answer", {"authorization": key}),
    lambda key: (f"/v1/answer?api_key={key}", {}),
    lambda key: (f"/v1/answer?a=b&x={key}", bearer(key)),
    lambda key: (f"/?x={key.replace('_', '%5F')}", {}),
    lambda key: (f"/v1/{key}", {}),
    lambda key: ("/healthz?X-API-Key=hidden", {}),
]


def test_no_key_gets_into_the_logs(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(path)
    caplog.set_level(logging.DEBUG)
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):  # other servers in this process may have set them
        caplog.set_level(logging.DEBUG, name)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    app = protect(application(), ProtectionConfig(keys=str(path)), now=lambda: NOW.timestamp())
    with listening(app) as url:
        replies = [plain_get(url + place, headers) for place, headers in (make(key) for make in _PLACES)]
    assert [status for status, _ in replies] == [405, 500, 401, 401, 400, 400, 400, 400, 400]
    assert all("Authorization: Bearer KEY" in text for status, text in replies if status == 400)
    logged = "\n".join(record.getMessage() + str(record.args) + str(record.exc_text) for record in caplog.records)
    assert logged.count("GET /") >= len(_PLACES), "the access log is there"
    assert "a fault" in logged + caplog.text
    secret = key.rsplit("_", 1)[1]
    for text in (logged, caplog.text):
        assert secret[:-1] not in text and "hidden" not in text


def plain_get(url: str, headers: dict[str, str]) -> tuple[int, str]:
    """A request by a client that does not log addresses itself."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_application_sees_no_key(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = new_key(path)
    caplog.set_level(logging.INFO, logger="app")
    with served(path) as client:
        client.post("/v1/answer", headers=bearer(key) | {"x-api-key": key, "x-request-id": "7"})
    assert "'x-request-id': '7'" in caplog.text
    assert key not in caplog.text and "authorization" not in caplog.text
