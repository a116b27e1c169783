"""The commit of a bank that a build has just filled, without the bank's shards: these are empty files with names.

python -m nodes.committing URI PASSAGES        prints what it took, as JSON
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from store.atoms import SMALL
from store.index_alone import index_table, shard_list

from regrad.bank.format import SHARD_FOLDER
from regrad.bank.writer import Change, commit
from regrad.storage import Storage


def main() -> None:
    """Make the tables of the change, then commit it as the first version; only that is timed."""
    uri, count = sys.argv[1], int(sys.argv[2])
    shards = shard_list(count)
    names = shards["shard"].to_pylist()
    (Path(uri) / SHARD_FOLDER).mkdir(parents=True)
    for name in names:
        (Path(uri) / SHARD_FOLDER / name).touch()
    change = Change(index=index_table(count, names), shards=shards, whole=True)
    started, processor = time.perf_counter(), time.process_time()
    manifest = commit(Storage(uri), SMALL.layout, change, None)
    found = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - processor}
    assert manifest.passages == count
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**found, "peak": peak, "shards": len(shards)}))


if __name__ == "__main__":
    main()
