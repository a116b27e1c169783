"""Bank to bank: the encoded bytes as they are, or decoded and encoded with another codec."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from regrad.bank.reader import BankReader
from regrad.bank.rows import QUARANTINE, read_table
from regrad.bank.transfer.intake import Imported, layout_at, writer_for
from regrad.bank.transfer.outgoing import hash_of, outgoing
from regrad.bank.writer import BankWriter
from regrad.config import CodecName
from regrad.errors import BankError
from regrad.storage import Storage


def copy_bank(
    source: str,
    target: str,
    version: int | None = None,
    codec: CodecName | None = None,
    passage_ids: Sequence[str] | None = None,
) -> Imported:
    """Copy a version's atoms (the one in force by default, or only these passages) into a new bank or an existing one.

    The codec is the target's, or the source's for a new bank, if none is named. With the source's own, records are
    checked and not decoded. The quarantine list goes along into a new bank if all is copied. Raises `BankError` if the
    target is the source or has another layout, `AtomNotFound` for a passage without an atom, `AtomDamaged`; nothing is
    committed then.
    """
    if Storage(source).root == Storage(target).root:
        raise BankError(f"{target} is the bank itself; choose another place for the copy")
    with BankReader(source, version=version) as bank:
        records = outgoing(source, bank, passage_ids)
    found = layout_at(target)
    is_new = found is None
    chosen = codec or (found or bank.manifest).codec
    layout = bank.manifest.layout.model_copy(update={"codec": chosen})
    writer = writer_for(target, layout)
    for rows, read in records:
        batch = torch.from_numpy(read)
        if layout.codec != bank.manifest.codec:
            batch = writer.codec.encode(bank.codec.decode(batch))
        for row, record in zip(rows.to_pylist(), batch, strict=True):
            writer.add_record(row["passage_id"], hash_of(row), record)
    refused = _copy_quarantine(source, bank, writer) if is_new and passage_ids is None else 0
    added = len(writer)
    return Imported(writer.commit(), added, refused)


def _copy_quarantine(uri: str, bank: BankReader, writer: BankWriter) -> int:
    file = bank.manifest.quarantine
    refused = read_table(Storage(uri), file, QUARANTINE).to_pylist() if file else []
    for row in refused:
        writer.refuse(row["passage_id"], row["reason"])
    return len(refused)
