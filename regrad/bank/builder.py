"""Building: each block of passages becomes a shard and a receipt, so that a build continues where it stopped."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from regrad.bank.format import INDEX, QUARANTINE, SHARDS, Manifest, read_table, shard_path, table
from regrad.bank.index import Catalog
from regrad.bank.shards import write_shard
from regrad.bank.writer import Change, whole_index
from regrad.data.passages import Passage
from regrad.digests import json_bytes, pieces_digest
from regrad.errors import BankError, StorageError
from regrad.settings import Settings
from regrad.storage import Storage

BUILDS = "builds"
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
    digest = pieces_digest([json_bytes(settings), *(passage.digest for passage in passages)])
    return f"{BUILDS}/{digest[:32]}.parquet"


def read_receipt(storage: Storage, name: str) -> pa.Table | None:
    """What a block's receipt says; None if there is none, if it is damaged, or if its shard is gone."""
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
    for name in storage.list(BUILDS):
        receipt = read_receipt(storage, f"{BUILDS}/{name}")
        if receipt is not None:
            described = receipt.filter(pc.is_valid(receipt["shard_rows"]))
            found.update(zip(described["shard"].to_pylist(), described["shard_rows"].to_pylist(), strict=True))
    return found


Extract = Callable[[Sequence[Passage]], Sequence[tuple[Tensor | None, str]]]
"""Passages to their records [record_bytes] uint8, each or the reason why there is none."""

BUILT = pa.schema([*RESULT, pa.field("kept", pa.bool_()), pa.field("receipt", pa.string())])
"""What a worker says of each passage; `kept` means that the atom of the version before still holds."""


class BlockBuilder:
    """Builds blocks. `settings` are everything but the passage that an atom's bytes depend on.

    `base` is the version whose atoms are kept where the text is the same, or None.
    """

    def __init__(self, storage: Storage, settings: Mapping[str, Any], extract: Extract, base: Manifest | None) -> None:
        self._storage, self._settings, self._extract = storage, settings, extract
        self._catalog = Catalog(storage, base.parts, base.record_bytes) if base else None

    def build(self, passages: Sequence[Passage], refused: Sequence[tuple[str, str]] = (), label: str = "") -> pa.Table:
        """What became of the passages (a table `BUILT`, in their order) and of lines that are not passages.

        `label` is what else the records of this block depend on.
        """
        # 1. Lines that are no passages, and passages whose atom in the base version still holds.
        bad = {"passage_id": [name for name, _ in refused], "reason": [reason for _, reason in refused]}
        kept = [passage for passage in passages if self._is_there(passage)]
        tables = [_built(table(RESULT, bad)), _built(table(RESULT, _names(kept)), kept=True)]
        # 2. The rest: from the receipt, if an earlier run has done exactly these passages, or computed now.
        todo = [passage for passage in passages if not self._is_there(passage)]
        if todo:
            name = receipt_name({**self._settings, **({"label": label} if label else {})}, todo)
            tables.append(_built(read_receipt(self._storage, name) or self._compute(name, todo), receipt=name))
        # 3. In the order of the corpus: of two passages with one id the first one counts.
        built = pa.concat_tables(tables)
        places = {(passage.id, passage.text_hash): i for i, passage in reversed(list(enumerate(passages)))}
        hashes = [value.hex() if value else "" for value in built["text_hash"].to_pylist()]
        keys = [places.get(key, -1) for key in zip(built["passage_id"].to_pylist(), hashes, strict=True)]
        return built.take(np.argsort(keys, kind="stable"))

    def _is_there(self, passage: Passage) -> bool:
        place = self._catalog.find(passage.id) if self._catalog else None
        return place is not None and place.entry.belongs_to(passage.text_hash)

    def _compute(self, name: str, passages: Sequence[Passage]) -> pa.Table:
        """Write the block's shard, then its receipt; what the receipt says."""
        outcomes = list(zip(passages, self._extract(passages), strict=True))
        good = [(passage, record) for passage, (record, _) in outcomes if record is not None]
        bad = [(passage, reason) for passage, (record, reason) in outcomes if record is None]
        columns = {**_names([passage for passage, _ in bad]), "reason": [reason for _, reason in bad]}
        result = table(RESULT, columns)
        if good:
            shard, crcs = write_shard(self._storage, torch.stack([record for _, record in good]))
            places = {"shard": [shard.shard] * len(good), "row": list(range(len(good))), "crc32": crcs}
            # Row 0 of a shard describes it; the other rows leave that empty.
            empty = [None] * (len(good) - 1)
            about = {f"shard_{name}": [getattr(shard, name), *empty] for name in SHARDS.names if name != "shard"}
            written = table(RESULT, {**_names([passage for passage, _ in good]), **places, **about})
            result = pa.concat_tables([result, written])
        sink = io.BytesIO()
        pq.write_table(result, sink, compression="zstd")
        self._storage.write(name, sink.getvalue())
        return result


def _names(passages: Sequence[Passage]) -> dict[str, Any]:
    hashes = [bytes.fromhex(passage.text_hash) for passage in passages]
    return {"passage_id": [passage.id for passage in passages], "text_hash": hashes}


def _built(result: pa.Table, kept: bool = False, receipt: str | None = None) -> pa.Table:
    result = result.append_column(BUILT.field("kept"), pa.repeat(pa.scalar(kept), len(result)))
    return result.append_column(BUILT.field("receipt"), pa.array([receipt] * len(result), pa.string()))


def assemble(storage: Storage, built: pa.Table, base: Manifest | None, whole: bool) -> Change:
    """The change that all blocks together make to `base`; of a `whole` corpus also what is no longer in it.

    An id that occurs again is refused the second time. Raises `BankError` if no passage at all has an atom.
    """
    # 1. Passages with an atom, each id once; all others go on the quarantine list with their reason.
    refused = pc.is_valid(built["reason"])
    passages = built.filter(pc.invert(refused))
    first = _first_occurrence(passages["passage_id"])
    again = passages.filter(pc.invert(first))["passage_id"]
    passages = passages.filter(first)
    reasons = pa.array(["duplicate id; the first passage with it is kept"] * len(again), pa.string())
    bad = [built.filter(refused).select(QUARANTINE.names), pa.table({"passage_id": again, "reason": reasons})]
    quarantine = pa.concat_tables(bad).cast(QUARANTINE)
    if not len(passages):
        reason = quarantine["reason"][0].as_py() if len(quarantine) else ""
        why = f"the first was refused: {reason}" if reason else "there is none"
        raise BankError(f"no passage gave an atom; {why}", code="no_atoms", reason=reason)
    # 2. What is new, the shards it is in, and what the corpus no longer has.
    new = passages.filter(pc.invert(passages["kept"]))
    described = built.filter(pc.is_valid(built["shard_sha256"]))
    shards = {name: described[name if name == "shard" else f"shard_{name}"] for name in SHARDS.names}
    removed: list[str] = []
    if base and whole:
        before = whole_index(storage, base)[0]["passage_id"]
        removed = before.filter(pc.invert(pc.is_in(before, passages["passage_id"].combine_chunks()))).to_pylist()
    return Change(
        index=table(INDEX, {name: new[name] for name in INDEX.names}),
        shards=table(SHARDS, shards),
        removed=removed,
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


def _first_occurrence(ids: pa.ChunkedArray) -> pa.Array:
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    mask = np.zeros(len(codes), bool)
    mask[np.unique(codes, return_index=True)[1]] = True
    return pa.array(mask)


# How long a version took to make: a note next to the bank, not in it, since the same bank takes a different time on
# every build.

_NOTE = re.compile(r"(\d{8})\.json")


class Preparation(Settings):
    """Passages that were computed for a version, and the working time of all workers together.

    It counts neither loading the model nor what was taken over from the version before. `nodes` are the passages that
    each node of the cluster has computed, by the node's name.
    """

    passages: int = Field(ge=0)
    seconds: float = Field(ge=0)
    nodes: dict[str, int] = Field({})

    @property
    def milliseconds_per_passage(self) -> float | None:
        """None if nothing was computed."""
        return 1e3 * self.seconds / self.passages if self.passages else None


def note_preparation(bank: str, version: int, preparation: Preparation) -> None:
    """Note what a version of the bank at a URI took."""
    _notes(bank).write(f"{version:08d}.json", preparation.model_dump_json().encode())


def read_preparation(bank: str, version: int) -> Preparation | None:
    """What the version took, or the version before if nothing was computed for it; None if no note is readable."""
    storage = _notes(bank)
    found = (_NOTE.fullmatch(name) for name in storage.list())
    numbers = sorted((int(match[1]) for match in found if match and int(match[1]) <= version), reverse=True)
    for number in numbers:
        try:
            noted = Preparation.model_validate_json(storage.read(f"{number:08d}.json"))
        except ValidationError:
            continue
        if noted.passages:
            return noted
    return None


def _notes(bank: str) -> Storage:
    return Storage(f"{bank.rstrip('/')}.preparation")
