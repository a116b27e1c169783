"""What a bank directory looks like; docs/bank-format.md describes it in prose.

    CURRENT                      a hint at the version in force, as JSON: {format, version}
    manifests/00000001.json      one version: what its atoms are, and the parts that it consists of
    index/<digest>.parquet       the passages of one part: id, text hash, shard, row, checksum
    shard-lists/<digest>.parquet the shards that the part's atoms lie in: name, rows, offset, bytes, checksum
    lookup/<digest>.bin          the same by the hash of the id, for one look-up without reading the rest
    quarantine/<digest>.parquet  passages without an atom: id, reason
    forgotten/<digest>.parquet   passages that no version may give out any more
    shards/<digest>.safetensors  one tensor `atoms` [n, record_bytes] uint8

A digest is the first 32 hex digits of the content's SHA-256. No file is changed once written. The version in force is
the one with the highest number; creating its manifest, which one writer of many can do, is the commit.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from regrad.bank.codecs import codec_for
from regrad.config import CodecName
from regrad.errors import BankError
from regrad.language_model.subspace import Subspace
from regrad.settings import Settings

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
