"""A real S3 server in a process beside this one, if it can be installed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

_SCRIPT = Path(__file__).parents[2] / "tests" / "tools" / "s3_server.sh"
_CANNOT = 3


@contextmanager
def object_store(folder: Path) -> Iterator[str | None]:
    """The URI of an empty bucket, or None where there is no such server."""
    try:
        yield _bucket(folder) if _starts(folder) else None
    finally:
        subprocess.run(["bash", str(_SCRIPT), "stop", str(folder)], check=True)


def _starts(folder: Path) -> bool:
    done = subprocess.run(["bash", str(_SCRIPT), "start", str(folder)], stdin=subprocess.DEVNULL)
    if done.returncode not in (0, _CANNOT):
        raise RuntimeError(f"the S3 server did not start; see {folder}/log")
    return done.returncode == 0


def _bucket(folder: Path) -> str:
    lines = (folder / "env.sh").read_text().splitlines()
    os.environ.update(dict(line.split("=", 1) for line in lines))
    fsspec.filesystem("s3").mkdir("bank-store")
    return "s3://bank-store"
