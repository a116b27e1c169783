"""How files are compressed: by the ending of the name, read by decoders that notice where a file was cut off."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from typing import Any

import pyarrow as pa

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")

PACKED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh91AY&SY", ".xz": b"\xfd7zXZ"}
"""How the content begins."""


def compression(path: str) -> str:
    """The ending that says how a file is compressed, in small letters, or nothing."""
    return next((ending for ending in COMPRESSIONS if path.lower().endswith(ending)), "")


def unpacked(path: str) -> str:
    """The path in small letters, without that ending."""
    return path.lower().removesuffix(compression(path))


def _zstd(raw: Any) -> Any:
    # Arrow's, because the stream reader of `zstandard`, which fsspec would take, ends silently where a file was
    # cut off.
    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")


DECODERS: dict[str, Callable[[Any], Any]] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}
"""By ending: the content of an open file."""
