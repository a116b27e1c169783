"""`regrad keys`: keys are shown once, files are private, and two commands at once both count."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from regrad.errors import StorageError
from regrad.locking import exclusive
from regrad.storage import Storage
from serve_app.auth import keys
from serve_app.auth.keys import KEY, KeyFileError, KeyStore, key_hash, make_key
from tests.tools.patience import completed
from tests.tools.refusals import refused

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def regrad(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "REGRAD_KEYS"}
    command = [sys.executable, "-m", "regrad.cli.main", *arguments]
    return completed(command, 120, cwd=cwd, env=environment)


@pytest.mark.slow
def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    made = regrad("keys", "create", "--name", "the team", "--requests-per-minute", "7", "--expires", "30", cwd=tmp_path)
    assert made.returncode == 0
    key = made.stdout.strip()
    match = KEY.fullmatch(key)
    assert match is not None
    secret = key.rsplit("_", 1)[1]
    assert secret not in made.stderr
    path = tmp_path / "runs" / "keys.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret not in path.read_text()
    assert os.listdir(path.parent) == ["keys.json"]

    listed = regrad("keys", "list", cwd=tmp_path)
    until = (datetime.now(UTC) + timedelta(days=30)).date()
    assert f"{match[1]}  " in listed.stdout
    for word in ("the team", "good", " 7 ", "default"):
        assert word in listed.stdout
    assert str(until) in listed.stdout or str(until - timedelta(days=1)) in listed.stdout
    as_json = regrad("keys", "list", "--json", cwd=tmp_path)
    assert json.loads(as_json.stdout)[0]["requests_per_minute"] == 7
    for shown in (listed.stdout, as_json.stdout):
        assert key_hash(key) not in shown and secret not in shown

    revoked = regrad("keys", "revoke", match[1], cwd=tmp_path)
    assert revoked.stdout == f"revoked key {match[1]} of the team\n"
    assert "revoked" in regrad("keys", "list", cwd=tmp_path).stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["list"], 2, "there is no file of keys at"),
        (["revoke", "abc"], 2, "there is no file of keys at"),
        (["create"], 2, "Missing option '--name'"),
        (["create", "--name", "a\nb"], 2, "a name is one line of visible characters"),
        (["create", "--name", " "], 2, "a name is one line of visible characters"),
        (["create", "--name", "x" * 81], 2, "at most 80 characters"),
        (["create", "--name", "x", "--requests-per-minute", "0"], 2, "0 is not in the range"),
        (["create", "--name", "x", "--expires", "-1"], 2, "-1 is not in the range"),
        (["create", "--name", "x", "--file", "/proc/nowhere/keys"], 2, "cannot write /proc/nowhere/keys.lock"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_told(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    result = regrad("keys", *arguments, cwd=tmp_path)
    assert result.returncode == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr and not result.stdout


def _add(uri: str, name: str) -> None:
    KeyStore(uri).add(make_key(name, NOW)[1])


@pytest.mark.slow
def test_two_at_once_lose_no_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    uri, names = str(tmp_path / "keys.json"), [f"user {number}" for number in range(8)]
    with context.Pool(4) as pool:
        pool.starmap(_add, [(uri, name) for name in names])
    assert sorted(record.name for record in KeyStore(uri).records()) == names


def test_any_store_will_do() -> None:
    uri = "memory://test_any_store_will_do/keys.json"
    key, record = make_key("a", NOW, NOW + timedelta(days=1), 5, 6)
    KeyStore(uri).add(record)
    _add(uri, "b")
    assert KeyStore(uri).records()[0] == record
    assert record.hash == key_hash(key) and record.id in key
    assert KeyStore(uri).revoke(record.id).disabled
    assert [each.disabled for each in KeyStore(uri).records()] == [True, False]
    with refused(KeyFileError, "unknown_key", key_id="none", uri=uri):
        KeyStore(uri).revoke("none")


def test_a_lock_file_that_was_left_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "keys.json.lock").write_text("0123456789abcdef0123456789abcdef")
    _add(str(tmp_path / "keys.json"), "a")
    assert os.listdir(tmp_path) == ["keys.json"]


def test_who_changes_the_keys_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_LOCK_SECONDS", 0.1)
    uri = str(tmp_path / "keys.json")
    with exclusive(Storage(uri), KeyFileError):
        with refused(KeyFileError, "locked", uri=uri) as error:
            _add(uri, "a")
        assert f"process {os.getpid()} on" in str(error.value.fields["holder"])
        assert not (tmp_path / "keys.json").exists()
    _add(uri, "a")


def test_a_change_that_fails_frees_the_lock_and_keeps_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "keys.json")
    _add(uri, "a")

    def full(storage: Storage, name: str, data: bytes) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(Storage, "write", full)
        _add(uri, "b")
    _add(uri, "c")
    assert [record.name for record in KeyStore(uri).records()] == ["a", "c"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["keys"].append(data["keys"][0]),
        lambda data: data["keys"][0].update(hash="rg_secret"),
        lambda data: data["keys"][0].update(requests_per_minute=0),
        lambda data: data["keys"][0].update(expires="2026-01-01T00:00:00"),
        lambda data: data["keys"][0].update(key="rg_secret"),
        lambda data: data.update(format=2),
    ],
    ids=["twice", "hash", "limit", "no time zone", "unknown field", "format"],
)
def test_a_damaged_file_is_refused_without_showing_it(tmp_path: Path, change: object) -> None:
    uri = str(tmp_path / "keys.json")
    _add(uri, "a")
    data = json.loads((tmp_path / "keys.json").read_text())
    change(data)  # type: ignore[operator]
    (tmp_path / "keys.json").write_text(json.dumps(data))
    with refused(KeyFileError, "damaged", uri=uri) as error:
        KeyStore(uri).records()
    assert "rg_secret" not in str(error.value) and data["keys"][0]["hash"] not in str(error.value)


def test_keys_differ() -> None:
    keys = {make_key("a", NOW)[0] for _ in range(1000)}
    assert len(keys) == 1000
    assert all(len(key.rsplit("_", 1)[1]) == 64 for key in keys)


def test_no_ray_is_imported_by_the_verbs(tmp_path: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from regrad.cli.main import regrad\n"
        "print(CliRunner().invoke(regrad, ['keys', 'create', '--name', 'x']).exit_code, 'ray' in sys.modules)"
    )
    result = completed([sys.executable, "-c", code], 120, cwd=tmp_path)
    assert result.stdout.strip() == "0 False", result.stderr
