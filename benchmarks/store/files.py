"""Copying, flushing, evicting and weighing files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def flush(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def copy(source: Path, target: Path, durable: bool) -> None:
    """`shutil.copyfile`, with an fsync if it is to be as durable as a bank's file."""
    shutil.copyfile(source, target)
    if durable:
        flush(target)


def evict(folder: Path) -> None:
    """Ask the kernel to drop all files below a folder from its page cache (what a hypervisor caches stays)."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
