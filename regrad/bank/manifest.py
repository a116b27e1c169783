"""What a bank directory looks like; docs/bank-format.md describes it in prose.

    CURRENT                     the version in force, as JSON: {format, version}
    manifests/00000001.json     one version: fingerprint, codec, shards, index
    index/<digest>.parquet      passage_id, text_hash, shard, row, crc32; sorted by passage_id
    quarantine/<digest>.jsonl   passages without an atom: id, reason
    shards/<digest>.safetensors one tensor `atoms` [n, record_bytes] uint8

A digest is the first 32 hex digits of the content's SHA-256. Shards, indexes and manifests are not changed once
written; a version becomes visible when CURRENT names it. (Two simultaneous writers are not arbitrated yet.)
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from regrad.bank.codecs import codec_for
from regrad.config import CodecName
from regrad.errors import BankError, StorageError
from regrad.language_model.subspace import Subspace
from regrad.settings import Settings
from regrad.storage import Storage

FORMAT = 1
POINTER = "CURRENT"
_NAME = re.compile(r"(shards/[0-9a-f]{32}\.safetensors|index/[0-9a-f]{32}\.parquet|quarantine/[0-9a-f]{32}\.jsonl)")


class Pointer(Settings):
    """The content of `CURRENT`."""

    format: int
    version: int = Field(ge=1)


class Shard(Settings):
    """One shard file: row i of its tensor starts at byte `offset + i * record_bytes`."""

    rows: int = Field(ge=1)
    offset: int = Field(ge=0)
    sha256: str


class Manifest(Settings):
    """One version of a bank."""

    format: int
    version: int = Field(ge=1)
    parent: int | None = None
    fingerprint: str
    codec: CodecName
    subspace: dict[str, Any]
    size: int = Field(ge=1, description="P, numbers in an atom")
    record_bytes: int = Field(ge=1)
    passages: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    shards: dict[str, Shard]
    index: str
    quarantine: str

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        subspace = self._parsed_subspace()
        if self.size != subspace.size:
            raise ValueError(f"size {self.size} is not the subspace's {subspace.size}")
        if self.record_bytes != codec_for(self.codec, subspace).record_bytes:
            raise ValueError(f"record_bytes {self.record_bytes} is not what {self.codec} makes of {self.size} numbers")
        names = [*(f"shards/{name}" for name in self.shards), self.index, self.quarantine]
        wrong = [name for name in names if not _NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r:.80} is not the name of a file of a bank")
        return self

    def _parsed_subspace(self) -> Subspace:
        try:
            return Subspace.from_json(self.subspace)
        except (KeyError, TypeError) as error:
            raise ValueError(f"subspace {str(self.subspace)!r:.80} is not one: {error}") from error

    @property
    def label(self) -> str:
        """What answers call this version: its number and the start of its content hash."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        return f"{self.version}-{digest[:8]}"


def manifest_name(version: int) -> str:
    """The file of a version's manifest."""
    return f"manifests/{version:08d}.json"


def current_version(storage: Storage) -> int | None:
    """The version that CURRENT names, or None for a bank that does not exist yet."""
    if not storage.exists(POINTER):
        return None
    pointer = _parse(Pointer, storage, POINTER)
    if pointer.format != FORMAT:
        raise BankError(f"the bank at {storage.uri} has format {pointer.format}; this regrad reads format {FORMAT}")
    return pointer.version


def read_manifest(storage: Storage, version: int | None = None) -> Manifest:
    """The manifest of a version (the current one by default); raises `BankError` if there is none or it is damaged."""
    number = version if version is not None else current_version(storage)
    if number is None:
        raise BankError(f"there is no bank at {storage.uri}: {POINTER} is missing; make one with `regrad build`")
    manifest = _parse(Manifest, storage, manifest_name(number))
    if manifest.format != FORMAT:
        raise BankError(f"the bank at {storage.uri} has format {manifest.format}; this regrad reads format {FORMAT}")
    return manifest


T = TypeVar("T", bound=Settings)


def _parse(kind: type[T], storage: Storage, name: str) -> T:
    try:
        return kind.model_validate_json(storage.read(name))
    except ValidationError as error:
        raise BankError(f"{storage.uri}/{name} is damaged: {error.errors()[0]['msg']}") from error
    except StorageError as error:
        raise BankError(f"the bank at {storage.uri} lacks {name}: {error}") from error
