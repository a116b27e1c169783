"""`regrad serve update`, `rollback` and `status`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from regrad.cli import serve as serve_cli
from regrad.cli.main import regrad
from regrad.errors import ConfigError, RegradError, ServeError
from serve_app import rollout
from serve_app.config import ServeConfig
from serve_app.rollout import read_releases, resolve_releases
from tests.tools.refusals import refused
from tests.tools.releasing import commit, meta_init, setup


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    return setup(tmp_path)


@pytest.fixture
def file(config: ServeConfig, tmp_path: Path) -> str:
    path = tmp_path / "serve.yaml"
    args = config.model_dump(mode="json", include={"meta_init", "bank", "index", "releases"})
    path.write_text(yaml.safe_dump({"applications": [{"import_path": "serve_app.app:build", "args": args}]}))
    return str(path)


@pytest.fixture
def url(config: ServeConfig) -> Iterator[str]:
    """A server that says what the file says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            facts = resolve_releases(config, read_releases(config))[1]
            body = json.dumps({"releases": facts}).encode() if self.path == "/v1/bank" else b"[]"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def serve(*arguments: str) -> Result:
    return CliRunner().invoke(regrad, ["serve", *arguments], catch_exceptions=True)


def fail(*arguments: str) -> None:
    """Raises the error that the command ends with."""
    regrad.main(["serve", *arguments], standalone_mode=False)


def test_an_update_is_written_and_taken_back(config: ServeConfig, file: str, tmp_path: Path, url: str) -> None:
    commit(tmp_path / "bank", meta_init(tmp_path / "again"), seed=2)
    result = serve("update", "--config", file, "--bank-version", "1", "--url", url)
    assert result.exit_code == 0, result.output
    assert "main: 100% of the traffic" in result.output and "(stays at this version), 7 passages" in result.output
    assert f"the server at {url} answers from it" in result.output
    assert read_releases(config).releases[0].bank_version == 1
    result = serve("rollback", "--config", file, "--url", url)
    assert result.exit_code == 0 and "version   2-" in result.output
    assert serve("rollback", "--config", file).exit_code == 0
    assert read_releases(config).releases[0].bank_version == 1


def test_a_share_keeps_the_main_release(config: ServeConfig, file: str, tmp_path: Path) -> None:
    commit(tmp_path / "bank-b", meta_init(tmp_path / "b", seed=3))
    pair = ["--meta-init", str(tmp_path / "b"), "--bank", str(tmp_path / "bank-b")]
    result = serve("update", "--config", file, *pair, "--name", "next", "--share", "0.1")
    assert result.exit_code == 0, result.output
    assert "main: 90% of the traffic" in result.output and "next: 10% of the traffic" in result.output
    assert [release.bank for release in read_releases(config).releases] == [config.bank, str(tmp_path / "bank-b")]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--meta-init", "{b}"], "bank.fingerprint_mismatch"),
        (["--bank-version", "7"], "bank"),
        (["--share", "0.5"], "serve.name_taken"),
        (["--share", "1.5"], "config"),
        (["--name", "a b"], "config"),
        (["--set", "releases=null", "--name", "new"], "serve.no_releases_file"),
        ([], "serve.nothing_changes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_hold_together_is_not_written(
    config: ServeConfig, file: str, tmp_path: Path, options: list[str], code: str
) -> None:
    meta_init(tmp_path / "b", seed=3)
    with pytest.raises(RegradError) as error:
        fail("update", "--config", file, *(option.format(b=tmp_path / "b") for option in options))
    assert error.value.code.startswith(code)
    assert not (tmp_path / "releases.json").exists()


def test_nothing_to_roll_back_to(file: str) -> None:
    with refused(ServeError, "nothing_to_roll_back"):
        fail("rollback", "--config", file)


def test_a_server_that_does_not_follow_is_noticed(file: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_cli, "_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(serve_cli, "releases_at", lambda url: [{"name": "other"}])
    with refused(ServeError, "not_followed", url=url):
        fail("update", "--config", file, "--name", "new", "--url", url)


def test_status_says_what_is_answered_from(url: str, config: ServeConfig) -> None:
    result = serve("status", "--url", url)
    assert result.exit_code == 0
    for piece in ("main: 100%", config.bank, config.meta_init, "1-", "the newest, always", "7 passages"):
        assert piece in result.output
    with refused(ServeError, "no_server", url="http://127.0.0.1:9"):
        fail("status", "--url", "http://127.0.0.1:9")
    with refused(ServeError, "not_regrad", url=f"{url}/elsewhere"):
        fail("status", "--url", f"{url}/elsewhere")


def test_settings_before_the_verb_are_refused(file: str) -> None:
    result = serve("--config", file, "rollback")
    assert result.exit_code == 2 and "put --config and --set after the verb" in result.output


def test_without_a_verb_it_serves(file: str) -> None:
    result = serve("--config", file, "--set", "limits.max_q=3")
    assert isinstance(result.exception, ConfigError) and "did you mean 'limits.max_k'?" in str(result.exception)


def test_a_bank_that_the_releases_in_force_overrule_is_not_silently_another(
    config: ServeConfig, file: str, tmp_path: Path
) -> None:
    assert serve("update", "--config", file, "--name", "second").exit_code == 0
    with refused(ConfigError, "overruled_by_releases", key="bank", given=f"{tmp_path}/other", found=config.bank):
        fail("--config", file, "--set", f"bank={tmp_path}/other")


HOLD = """
import sys, time
from serve_app.config import ServeConfig
from serve_app.rollout import changing_releases
with changing_releases(ServeConfig(meta_init="m", bank="b", index="i", releases=sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_an_update_goes_on_after_one_that_was_killed(config: ServeConfig, file: str) -> None:
    command = [sys.executable, "-c", HOLD, str(config.releases)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
        finally:
            process.kill()
    assert Path(f"{config.releases}.lock").exists(), "SIGKILL leaves no time to remove it"
    result = serve("update", "--config", file, "--bank-version", "1")
    assert result.exit_code == 0, result.output
    assert read_releases(config).releases[0].bank_version == 1
    assert not Path(f"{config.releases}.lock").exists()


def test_a_lock_file_of_an_earlier_version_is_no_lock(config: ServeConfig, file: str) -> None:
    Path(f"{config.releases}.lock").write_text("0123456789abcdef0123456789abcdef")
    assert serve("update", "--config", file, "--bank-version", "1").exit_code == 0


def test_who_changes_the_releases_is_named(config: ServeConfig, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "_LOCK_SECONDS", 0.1)
    with rollout.changing_releases(config), refused(ServeError, "releases_locked", uri=config.releases) as error:
        fail("update", "--config", file, "--bank-version", "1")
    assert f"process {os.getpid()} on" in str(error.value.fields["holder"])
