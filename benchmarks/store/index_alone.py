"""A version of a bank without shards: its tables are made in bulk and published by the library's own functions.

python -m store.index_alone URI PASSAGES        prints what it took, as JSON
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regrad.bank.format import INDEX, SHARDS, table
from regrad.bank.writer import Change, publish_parts, write_part
from regrad.storage import Storage
from store.atoms import SMALL

_OFFSET = 128


def index_table(count: int, names: list[str]) -> pa.Table:
    """Passages in shards of 1,024 atoms; the hashes of their texts and the checksums are random."""
    rng, numbers = np.random.default_rng(0), np.arange(count)
    rows = SMALL.shard_rows
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 8, "0")
    columns = {
        "passage_id": pc.binary_join_element_wise("passage-", digits, ""),
        "text_hash": pa.Array.from_buffers(pa.binary(32), count, [None, pa.py_buffer(rng.bytes(32 * count))]),
        "shard": pa.DictionaryArray.from_arrays(pa.array(numbers // rows, pa.int32()), pa.array(names)),
        "row": pa.array((numbers % rows).astype(np.uint32)),
        "crc32": pa.array(rng.integers(0, 1 << 32, count, dtype=np.uint32)),
    }
    return table(INDEX, columns)


def shard_list(count: int) -> pa.Table:
    """Shards that nobody has written."""
    shards = -(-count // SMALL.shard_rows)
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(shards)]
    same = {"rows": SMALL.shard_rows, "offset": _OFFSET, "bytes": _OFFSET + SMALL.shard_rows * SMALL.bytes}
    columns = {name: [value] * shards for name, value in same.items()}
    return table(SHARDS, {"shard": [f"{name[:32]}.safetensors" for name in digests], **columns, "sha256": digests})


def _memory(name: str) -> int:
    """Bytes of memory by the kernel's account: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Make the tables, then publish: the time and the peak of memory of that alone."""
    storage, count = Storage(sys.argv[1]), int(sys.argv[2])
    shards = shard_list(count)
    index = index_table(count, shards["shard"].to_pylist())
    Path("/proc/self/clear_refs").write_text("5")  # the most counts from here
    before, started = _memory("VmRSS"), time.perf_counter()
    part = write_part(storage, index, shards)
    publish_parts(storage, SMALL.layout, None, (part,), count, Change())
    seconds = time.perf_counter() - started
    found = {"before": before, "peak": _memory("VmHWM"), "index": index.nbytes, "lookup": part.lookup.bytes}
    print(json.dumps({"seconds": seconds, **found}))


if __name__ == "__main__":
    main()
