from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from regrad import storage as module
from regrad.errors import StorageError
from regrad.storage import Storage, check_writable, directory_writer, local_directory, parts_uri, safetensors_header
from tests.tools.refusals import refused


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path)
    storage.write("a/file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    with refused(StorageError, "refused", verb="write", uri=f"{tmp_path}/a/file", errno=errno.ENOSPC):
        storage.write("a/file", b"new")
    assert storage.read("a/file") == b"old"
    assert storage.list("a") == ["file"]


def test_ranges_and_listing(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}")
    storage.write("x", b"0123456789")
    assert storage.read("x", 2, 5) == b"234"
    assert storage.list() == ["x"]
    assert storage.list("none") == []
    with refused(StorageError, "not_found", uri=f"file://{tmp_path}/y"):
        storage.read("y")


def test_a_place_that_cannot_be_written_is_found_and_one_that_can_stays_as_it_was(tmp_path: Path) -> None:
    check_writable(f"{tmp_path}/a/b")
    check_writable("memory://bucket/a/b")
    assert list(tmp_path.iterdir()) == []
    assert Storage("memory://bucket").files() == {}
    (tmp_path / "file").write_text("")
    with refused(StorageError, "refused", verb="write", uri=f"{tmp_path}/file/a/b"):
        check_writable(f"{tmp_path}/file/a/b")


def test_an_interrupted_directory_is_absent(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), directory_writer(tmp_path / "d", "card.json") as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_filled_in_the_scratch_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    with directory_writer(tmp_path / "d", "card.json", scratch) as folder:
        assert folder.parent == scratch
        (folder / "card.json").write_text("old")
    with monkeypatch.context() as patch:  # as if it were killed between the two renames
        patch.setattr(module.shutil, "rmtree", lambda *arguments, **options: None)
        with directory_writer(tmp_path / "d", "card.json", scratch) as folder:
            (folder / "card.json").write_text("new")
    assert (tmp_path / "d" / "card.json").read_text() == "new"
    assert [(path / "card.json").read_text() for path in scratch.iterdir()] == ["old"]
    assert {path.name for path in tmp_path.iterdir()} == {"d", "scratch"}


def test_parts_lie_beside_their_output() -> None:
    assert [parts_uri(uri) for uri in ("/a/b", "s3://a/b/c/")] == ["/a/.b.parts", "s3://a/b/.c.parts"]


def test_a_remote_directory_is_uploaded_and_downloaded_whole(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("REGRAD_CACHE", str(tmp_path / "cache"))
    with directory_writer("memory://some/dir", "card.json") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.bin").write_bytes(b"a")
        (folder / "card.json").write_text("{}")
    local = local_directory("memory://some/dir")
    assert (local / "sub" / "a.bin").read_bytes() == b"a"
    assert (local / "card.json").read_text() == "{}"
    assert local_directory("memory://some/dir") == local
    with refused(StorageError, "not_found", uri="memory://nothing/here"):
        local_directory("memory://nothing/here")


def test_an_unknown_scheme_is_a_clear_error() -> None:
    with refused(StorageError, "refused", verb="open", uri="nope://x"):
        Storage("nope://x")


def test_missing_credentials_are_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with refused(StorageError, "refused", verb="look up", uri="s3://no-bucket/x/CURRENT") as found:
        Storage("s3://no-bucket/x").exists("CURRENT")
    assert "Unable to locate credentials" in str(found.value)


def test_something_else_at_the_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    for name in ("file", "folder"):
        with refused(StorageError, "occupied"), directory_writer(tmp_path / name, "card.json"):
            pytest.fail("nothing may be written")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "precious"]
    (tmp_path / "empty").mkdir()
    with directory_writer(tmp_path / "empty", "card.json") as folder:
        (folder / "card.json").write_text("{}")
    assert (tmp_path / "empty" / "card.json").exists()


@pytest.mark.parametrize("uri", ["", "/", "s3://", "file://", "memory:///"])
def test_what_names_no_directory_is_refused(uri: str) -> None:
    with refused(StorageError, "no_directory", uri=uri):
        Storage(uri)


def test_a_safetensors_header_says_where_it_ends_and_what_has_none_is_refused() -> None:
    file = save({"atoms": np.zeros((3, 5), np.uint8)})
    header, end = safetensors_header(lambda start, stop: file[start:stop], most=1000)
    assert header["atoms"]["shape"] == [3, 5]
    assert end + 15 == len(file)
    for damaged in (b"", b"\x02", (2).to_bytes(8, "little") + b"[]", file[:30]):
        with pytest.raises(ValueError):
            safetensors_header(lambda start, stop, data=damaged: data[start:stop], most=1000)
    with pytest.raises(ValueError):
        safetensors_header(lambda start, stop: file[start:stop], most=10)
