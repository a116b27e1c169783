"""What every import does at its end: atoms go into a bank, bad ones onto its quarantine list, all in one commit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from regrad.bank.compact import SHARD_BYTES
from regrad.bank.manifest import Kind, Layout, Manifest, check_same_layout
from regrad.bank.versions import current_version, read_manifest
from regrad.bank.writer import BankWriter
from regrad.config import CodecName
from regrad.errors import BankError
from regrad.language_model.subspace import Subspace
from regrad.storage import Storage


class BadAtom(BankError):
    """One passage of an import has no usable atom: it is quarantined, and the others are not in danger."""


@dataclass(frozen=True)
class Incoming:
    """One passage of an import: its atom [P] float32, or why it has none. An empty hash is an unknown text."""

    passage_id: str
    text_hash: str
    atom_P: Tensor | None
    problem: str = ""


@dataclass(frozen=True)
class Imported:
    """What an import has done; `left_out` counts atoms that nobody asked for."""

    manifest: Manifest
    added: int
    refused: int
    left_out: int = 0


def layout_for(uri: str, kind: Kind, fingerprint: str, subspace: Subspace, codec: CodecName | None) -> Layout:
    """The layout of what is to be added to the bank at `uri`: its codec is the bank's, or float32, if none is named."""
    found = layout_at(uri)
    chosen = codec or (found.codec if found else "float32")
    return Layout(kind=kind, fingerprint=fingerprint, codec=chosen, subspace=subspace.to_json())


def writer_for(uri: str, layout: Layout) -> BankWriter:
    """A writer into a new bank or one of this layout, with shards of some 64 MiB; raises `BankError` for another."""
    found = layout_at(uri)
    if found is not None:
        check_same_layout(found, layout, uri)
    writer = BankWriter(uri, layout)
    return BankWriter(uri, layout, max(1, SHARD_BYTES // writer.codec.record_bytes))


def take_in(uri: str, layout: Layout, passages: Iterable[Incoming], left_out: int = 0) -> Imported:
    """Add passages to a bank, all of them or, after an error, none.

    Raises `BankError` if no passage has an atom, if an id occurs twice or is not valid Unicode, or if the bank that is
    there has another layout.
    """
    writer, refused = writer_for(uri, layout), []
    for passage in passages:
        _check_id(passage.passage_id)
        if passage.atom_P is None:
            writer.refuse(passage.passage_id, passage.problem)
            refused.append(passage.problem)
        else:
            writer.add_atom(passage.passage_id, passage.text_hash, passage.atom_P)
    added = len(writer)
    if not added:
        why = f"; the first was refused because: {refused[0]}" if refused else ""
        raise BankError(f"no passage gave an atom, nothing was added to {uri}{why}")
    return Imported(writer.commit(), added, len(refused), left_out)


def layout_at(uri: str) -> Layout | None:
    """The layout of the bank at `uri`; None if there is none."""
    storage = Storage(uri)
    version = current_version(storage)
    return read_manifest(storage, version).layout if version else None


def _check_id(passage_id: str) -> None:
    try:
        passage_id.encode()
    except UnicodeEncodeError as error:
        raise BankError(f"passage id {passage_id!r:.80} holds a character that is not valid Unicode") from error
