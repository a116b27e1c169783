"""What is kept of a passage, in bytes: an atom in every codec, or a record of a bank."""

from __future__ import annotations

from regrad.bank.codecs import CODECS
from regrad.bank.manifest import read_manifest
from regrad.models.subspace import Subspace
from regrad.storage import Storage


def bytes_by_codec(subspace: Subspace) -> dict[str, int]:
    """Of one atom, by codec."""
    return {name: make(subspace).record_bytes for name, make in CODECS.items()}


def bytes_in_bank(uri: str) -> int:
    """Of one record of the bank at `uri`."""
    return read_manifest(Storage(uri)).record_bytes
