"""The manifest: what a version of a bank is, which versions there are, and how a new one is published."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from regrad.bank.codecs import codec_for
from regrad.bank.config import CodecName
from regrad.errors import BankConflict, BankError, BankFormatError, StorageError
from regrad.models.subspace import Subspace
from regrad.settings import Settings
from regrad.storage import Storage

FORMAT = 2
Kind = Literal["gradient", "adapter"]
_NAME = re.compile(r"(index|shard-lists|quarantine|forgotten)/[0-9a-f]{32}\.parquet|lookup/[0-9a-f]{32}\.bin")


class File(Settings):
    """A file that a version consists of."""

    name: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _named_by_content(self) -> File:
        if not _NAME.fullmatch(self.name) or self.name.split("/")[1].split(".")[0] != self.sha256[:32]:
            raise ValueError(f"{self.name!r:.80} is not the name of a file of a bank")
        return self


class Part(Settings):
    """Passages that were added together, or deleted: a newer part overrides an older one."""

    index: File
    shard_list: File
    lookup: File
    rows: int = Field(ge=0, description="passages with an atom")
    deleted: int = Field(ge=0, description="passages of older parts that have none any more")
    shards: int = Field(ge=0)


class Layout(Settings):
    """What the atoms of a bank are: banks of the same layout can exchange records."""

    kind: Kind = "gradient"
    fingerprint: str
    codec: CodecName
    subspace: dict[str, Any]

    def parsed_subspace(self) -> Subspace:
        """The subspace as a class; raises `ValueError` if it is not one."""
        try:
            return Subspace.from_json(self.subspace)
        except (KeyError, TypeError) as error:
            raise ValueError(f"subspace {str(self.subspace)!r:.80} is not one: {error}") from error


class Manifest(Layout):
    """One version of a bank: its parts from the oldest to the newest."""

    format: int
    version: int = Field(ge=1)
    parent: int | None = None
    size: int = Field(ge=1, description="P, numbers in an atom")
    record_bytes: int = Field(ge=1)
    passages: int = Field(ge=0, description="passages that have an atom in this version")
    quarantined: int = Field(ge=0)
    parts: tuple[Part, ...]
    quarantine: File | None = None
    forgotten: File | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        subspace = self.parsed_subspace()
        if self.size != subspace.size:
            raise ValueError(f"size {self.size} is not the subspace's {subspace.size}")
        if self.record_bytes != codec_for(self.codec, subspace).record_bytes:
            raise ValueError(f"record_bytes {self.record_bytes} is not what {self.codec} makes of {self.size} numbers")
        return self

    @property
    def layout(self) -> Layout:
        """What the atoms are, without which there are."""
        return Layout(kind=self.kind, fingerprint=self.fingerprint, codec=self.codec, subspace=self.subspace)

    @property
    def files(self) -> list[File]:
        """Every file that the version names, but for shards."""
        parts = [file for part in self.parts for file in (part.index, part.shard_list, part.lookup)]
        return parts + [file for file in (self.quarantine, self.forgotten) if file]

    @property
    def label(self) -> str:
        """What answers call this version: its number and the start of its content hash."""
        return f"{self.version}-{hashlib.sha256(self.encoded()).hexdigest()[:8]}"

    def encoded(self) -> bytes:
        """The content of the manifest's file."""
        return self.model_dump_json(indent=1).encode()


def check_same_layout(found: Layout, wanted: Layout, uri: str) -> None:
    """Raise `BankError` unless atoms of `wanted` may be added to a bank of `found`."""
    for name in ("kind", "fingerprint", "codec", "subspace"):
        if getattr(found, name) != getattr(wanted, name):
            raise BankError(
                f"the bank at {uri} has {name} {getattr(found, name)!r:.60}, but what is to be added has "
                f"{getattr(wanted, name)!r:.60}; use another bank, or `regrad build` for a new version of all of it"
            )


POINTER = "CURRENT"
_MANIFEST = re.compile(r"(\d{8})\.json")


class _Pointer(Settings):
    format: int
    version: int = Field(ge=1)


def manifest_name(version: int) -> str:
    """The file of a version's manifest."""
    return f"manifests/{version:08d}.json"


def versions(storage: Storage) -> list[int]:
    """The versions that can be opened, the oldest first; empty for a bank that does not exist yet."""
    found = (_MANIFEST.fullmatch(name) for name in storage.list("manifests"))
    return sorted(int(match[1]) for match in found if match)


def current_version(storage: Storage) -> int | None:
    """The version in force, or None for a bank that does not exist yet. Raises `BankFormatError` for another format."""
    number = _hint(storage)
    if number is None or not storage.exists(manifest_name(number)):
        return max(versions(storage), default=None)
    while storage.exists(manifest_name(number + 1)):
        number += 1
    return number


def read_manifest(storage: Storage, version: int | None = None) -> Manifest:
    """The manifest of a version (the one in force by default); raises `BankError` if there is none or it is damaged."""
    number = version if version is not None else current_version(storage)
    if number is None:
        raise BankError(f"there is no bank at {storage.uri}; make one with `regrad build`")
    name = manifest_name(number)
    try:
        data = storage.read(name)
    except StorageError as error:
        if storage.exists(name):
            raise
        raise BankError(_no_such_version(storage, number)) from error
    if _format_of(data) != FORMAT:
        _refuse(storage, data)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise _unreadable(storage, name, error) from error
    if manifest.version != number:
        raise BankError(f"{storage.uri}/{name} is damaged: it says that it is version {manifest.version}")
    return manifest


def publish(storage: Storage, manifest: Manifest) -> None:
    """Make a version, for which all files are there, the one in force.

    Raises `BankConflict` if somebody else has committed a version of that number.
    """
    if not storage.create(manifest_name(manifest.version), manifest.encoded()):
        raise BankConflict(storage.uri, manifest.version)
    pointer = _Pointer(format=FORMAT, version=manifest.version)
    storage.write(POINTER, pointer.model_dump_json().encode())


def _hint(storage: Storage) -> int | None:
    """What `CURRENT` says; None if it is missing or garbage, since the manifests tell the same."""
    if not storage.exists(POINTER):
        return None
    data = storage.read(POINTER)
    if _format_of(data) != FORMAT:
        _refuse(storage, data)
    try:
        return _Pointer.model_validate_json(data).version
    except ValidationError:
        return None


def _unreadable(storage: Storage, name: str, error: ValidationError) -> BankError:
    """What is wrong with a manifest: made with a codec that we do not know, or damaged."""
    problem = error.errors()[0]
    if problem["loc"] == ("codec",) and isinstance(problem["input"], str):
        return BankFormatError(
            f"the bank at {storage.uri} has codec {problem['input']!r:.40}, which this regrad does not know (it knows "
            f"{', '.join(get_args(CodecName))}): update regrad, or build it anew at another place"
        )
    where = ".".join(map(str, problem["loc"]))
    return BankError(
        f"{storage.uri}/{name} is damaged: {f'{where}: ' if where else ''}{problem['msg']}; put it back from a copy of "
        "the bank, or open an older version"
    )


def _no_such_version(storage: Storage, number: int) -> str:
    there = versions(storage)
    known = f"it has {', '.join(map(str, there[-10:]))}" if there else "it has none: make one with `regrad build`"
    return f"the bank at {storage.uri} has no version {number}; {known}"


def _format_of(data: bytes) -> int | None:
    """The format that a file says it has, found before anything else of it is understood."""
    try:
        found = json.loads(data)
    except ValueError:
        return None
    number = found.get("format") if isinstance(found, dict) else None
    return number if isinstance(number, int) else None


def _refuse(storage: Storage, data: bytes) -> None:
    """Raise `BankFormatError` if the file says what format it has."""
    number = _format_of(data)
    if number is not None:
        way_out = "update regrad" if number > FORMAT else "fill it anew with `regrad build` at another place"
        raise BankFormatError(
            f"the bank at {storage.uri} has format {number}; this regrad reads format {FORMAT}: {way_out}"
        )
