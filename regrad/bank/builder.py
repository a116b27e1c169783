"""Building: blocks of passages become shards with receipts, so that a build goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from regrad.bank.index import Catalog
from regrad.bank.manifest import Manifest
from regrad.bank.schemas import INDEX, QUARANTINE, SHARDS, read_table, table
from regrad.bank.shards import shard_path, write_shard
from regrad.bank.writer import Change, whole_index
from regrad.data.passages import Passage
from regrad.errors import BankError, StorageError
from regrad.storage import Storage

FOLDER = "builds"
RESULT = pa.schema(
    [
        pa.field("passage_id", pa.string()),
        pa.field("text_hash", pa.binary(32)),
        pa.field("shard", pa.string()),
        pa.field("row", pa.uint32()),
        pa.field("crc32", pa.uint32()),
        pa.field("reason", pa.string()),
        *(pa.field(f"shard_{field.name}", field.type) for field in SHARDS if field.name != "shard"),
    ]
)
"""What became of each passage of a block: where its atom is, or why it has none. Row 0 of a shard describes it."""


def receipt_name(settings: Mapping[str, Any], passages: Sequence[Passage]) -> str:
    """The file of the block of these passages in a build with these settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for passage in passages:
        digest.update(hashlib.sha256(passage.id.encode()).digest() + bytes.fromhex(passage.text_hash))
    return f"{FOLDER}/{digest.hexdigest()[:32]}.parquet"


def write_receipt(storage: Storage, name: str, result: pa.Table) -> None:
    """Say that a block is done."""
    sink = io.BytesIO()
    pq.write_table(result, sink, compression="zstd")
    storage.write(name, sink.getvalue())


def read_receipt(storage: Storage, name: str) -> pa.Table | None:
    """What a block's receipt says; None if there is none, if it is damaged, or if its shard is not there any more."""
    if not storage.exists(name):
        return None
    try:
        result = pq.read_table(io.BytesIO(storage.read(name)), schema=RESULT)
    except (pa.ArrowException, OSError, ValueError, KeyError, StorageError):
        return None
    shards = {shard for shard in result["shard"].to_pylist() if shard}
    return result if all(storage.exists(shard_path(shard)) for shard in shards) else None


def unfinished(storage: Storage) -> dict[str, int]:
    """The shards that receipts name, and their rows."""
    found: dict[str, int] = {}
    for name in storage.list(FOLDER):
        receipt = read_receipt(storage, f"{FOLDER}/{name}")
        if receipt is not None:
            described = receipt.filter(pc.is_valid(receipt["shard_rows"]))
            found.update(zip(described["shard"].to_pylist(), described["shard_rows"].to_pylist(), strict=True))
    return found


Extract = Callable[[Sequence[Passage]], Sequence[tuple[Tensor | None, str]]]
"""Passages to their records [record_bytes] uint8, each or the reason why there is none."""

BUILT = pa.schema([*RESULT, pa.field("kept", pa.bool_()), pa.field("receipt", pa.string())])
"""What a worker says of each passage; `kept` means that the atom of the version before still holds."""


class BlockBuilder:
    """Does blocks of one build. `settings` are all that an atom's bytes depend on but for the passage.

    `base` is the version whose atoms are kept where the text is the same, or None.
    """

    def __init__(self, storage: Storage, settings: Mapping[str, Any], extract: Extract, base: Manifest | None) -> None:
        self._storage, self._settings, self._extract = storage, settings, extract
        self._catalog = Catalog(storage, base.parts, base.record_bytes) if base else None

    def build(self, passages: Sequence[Passage], refused: Sequence[tuple[str, str]] = (), label: str = "") -> pa.Table:
        """What became of the passages (a table `BUILT`, in their order) and of lines that are not passages.

        `label` is what else the records of this block depend on.
        """
        kept = [passage for passage in passages if self._is_there(passage)]
        todo = [passage for passage in passages if not self._is_there(passage)]
        tables = [_refused(refused), _kept(kept)]
        if todo:
            name = receipt_name({**self._settings, **({"label": label} if label else {})}, todo)
            tables.append(_built(read_receipt(self._storage, name) or self._do(name, todo), receipt=name))
        return _in_order(pa.concat_tables(tables), passages)

    def _is_there(self, passage: Passage) -> bool:
        place = self._catalog.find(passage.id) if self._catalog else None
        return place is not None and place.entry.belongs_to(passage.text_hash)

    def _do(self, name: str, passages: Sequence[Passage]) -> pa.Table:
        outcomes = list(zip(passages, self._extract(passages), strict=True))
        good = [(passage, record) for passage, (record, _) in outcomes if record is not None]
        bad = [(passage, reason) for passage, (record, reason) in outcomes if record is None]
        columns = {
            "passage_id": [passage.id for passage, _ in bad],
            "text_hash": [bytes.fromhex(passage.text_hash) for passage, _ in bad],
            "reason": [reason for _, reason in bad],
        }
        result = table(RESULT, columns)
        if good:
            result = pa.concat_tables([result, self._write([p for p, _ in good], torch.stack([r for _, r in good]))])
        write_receipt(self._storage, name, result)
        return result

    def _write(self, passages: Sequence[Passage], records: Tensor) -> pa.Table:
        info, crcs = write_shard(self._storage, records)
        columns: dict[str, Any] = {
            "passage_id": [passage.id for passage in passages],
            "text_hash": [bytes.fromhex(passage.text_hash) for passage in passages],
            "shard": [info.shard] * len(passages),
            "row": list(range(len(passages))),
            "crc32": crcs,
        }
        nothing = [None] * (len(passages) - 1)
        about = {f"shard_{name}": [getattr(info, name), *nothing] for name in SHARDS.names if name != "shard"}
        return table(RESULT, {**columns, **about})


def _refused(refused: Sequence[tuple[str, str]]) -> pa.Table:
    ids, reasons = ([item[i] for item in refused] for i in range(2))
    return _built(table(RESULT, {"passage_id": ids, "reason": reasons}))


def _kept(passages: Sequence[Passage]) -> pa.Table:
    hashes = [bytes.fromhex(passage.text_hash) for passage in passages]
    result = table(RESULT, {"passage_id": [passage.id for passage in passages], "text_hash": hashes})
    return _built(result, kept=True)


def _built(result: pa.Table, kept: bool = False, receipt: str | None = None) -> pa.Table:
    result = result.append_column(BUILT.field("kept"), pa.repeat(pa.scalar(kept), len(result)))
    return result.append_column(BUILT.field("receipt"), pa.array([receipt] * len(result), pa.string()))


def _in_order(built: pa.Table, passages: Sequence[Passage]) -> pa.Table:
    """In the order of the corpus: of two passages with one id the first one counts."""
    places = {(passage.id, passage.text_hash): i for i, passage in reversed(list(enumerate(passages)))}
    hashes = [value.hex() if value else "" for value in built["text_hash"].to_pylist()]
    keys = [places.get(key, -1) for key in zip(built["passage_id"].to_pylist(), hashes, strict=True)]
    return built.take(np.argsort(keys, kind="stable"))


def assemble(storage: Storage, built: pa.Table, base: Manifest | None, whole: bool) -> Change:
    """The change that all blocks together make to `base`; of a `whole` corpus also what is not in it any more.

    An id that occurs again is refused the second time. Raises `BankError` if no passage at all has an atom.
    """
    refused = pc.is_valid(built["reason"])
    passages, bad = built.filter(pc.invert(refused)), built.filter(refused)
    first = _first_occurrence(passages["passage_id"])
    again = passages.filter(pc.invert(first))
    passages = passages.filter(first)
    quarantine = pa.concat_tables([bad.select(QUARANTINE.names), _repeated(again)]).cast(QUARANTINE)
    if not len(passages):
        reason = quarantine["reason"][0].as_py() if len(quarantine) else ""
        raise BankError(f"no passage gave an atom; {f'the first was refused: {reason}' if reason else 'there is none'}")
    new = passages.filter(pc.invert(passages["kept"]))
    described = built.filter(pc.is_valid(built["shard_sha256"]))
    return Change(
        index=table(INDEX, {name: new[name] for name in INDEX.names}),
        shards=table(SHARDS, {name: described[_shard_column(name)] for name in SHARDS.names}),
        removed=_gone(storage, passages["passage_id"], base) if base and whole else (),
        quarantine=quarantine,
        whole=whole,
    )


def changes_nothing(storage: Storage, change: Change, base: Manifest) -> bool:
    """Whether a version with this change would be the same as the one before."""
    if len(change.index) or change.removed:
        return False
    known = read_table(storage, base.quarantine, QUARANTINE) if base.quarantine else QUARANTINE.empty_table()
    before, now = ({tuple(row.values()) for row in rows.to_pylist()} for rows in (known, change.quarantine))
    return before == now if change.whole else now <= before


def _shard_column(name: str) -> str:
    return name if name == "shard" else f"shard_{name}"


def _first_occurrence(ids: pa.ChunkedArray) -> pa.Array:
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    mask = np.zeros(len(codes), bool)
    mask[np.unique(codes, return_index=True)[1]] = True
    return pa.array(mask)


def _repeated(again: pa.Table) -> pa.Table:
    reasons = ["duplicate id; the first passage with it is kept"] * len(again)
    return pa.table({"passage_id": again["passage_id"], "reason": pa.array(reasons, pa.string())})


def _gone(storage: Storage, ids: pa.ChunkedArray, base: Manifest) -> list[str]:
    """Passages of the version before that the corpus does not have."""
    before = whole_index(storage, base)[0]["passage_id"]
    gone: list[str] = before.filter(pc.invert(pc.is_in(before, ids.combine_chunks()))).to_pylist()
    return gone
