"""The versions of a bank: which is in force, opening any of them, and the commit that makes a new one.

A version exists when its manifest does. Manifests are created exclusively, so of two writers that go from the same
version one commits and the other is told. `CURRENT` saves a listing; who finds it behind looks further.
"""

from __future__ import annotations

import json
import re
from typing import get_args

from pydantic import Field, ValidationError

from regrad.bank.manifest import FORMAT, Manifest
from regrad.config import CodecName
from regrad.errors import BankConflict, BankError, BankFormatError, StorageError
from regrad.settings import Settings
from regrad.storage import Storage

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
