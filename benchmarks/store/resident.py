"""How much an opened reader grows by look-ups, in a process that does nothing else.

python -m store.resident URI LOOK-UPS        prints bytes, as JSON
"""

from __future__ import annotations

import json
import sys

import numpy as np
import psutil

from regrad.bank.reader import BankReader
from store.atoms import passage_id


def _memory() -> tuple[int, int]:
    """Bytes of this process's own, and of files that are mapped (the kernel takes these back when it likes)."""
    found = psutil.Process().memory_info()
    return found.rss - found.shared, found.shared


def main() -> None:
    """Open, look up, compare."""
    reader = BankReader(sys.argv[1])
    numbers = np.random.default_rng(6).integers(0, len(reader), int(sys.argv[2]))
    ids = [passage_id(int(number)) for number in numbers]
    own, mapped = _memory()
    for name in ids:
        reader.locate(name)
    print(json.dumps({"own": _memory()[0] - own, "mapped": _memory()[1] - mapped}))


if __name__ == "__main__":
    main()
