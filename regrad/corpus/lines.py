"""The lines of a text file, plain or compressed, in bounded memory, with how far in the file each one brings us."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pyarrow as pa

from regrad.corpus.files import compression, reading

MAX_LINE_BYTES = 8 * 1024 * 1024
"""A longer line of a corpus is refused: it is not a passage."""

TOO_LONG = f"longer than {MAX_LINE_BYTES} bytes"

_CHUNK = 1024 * 1024
_REMOTE_BLOCK = 8 * 1024 * 1024
_KEPT = 4096


def _zstd(raw: Any) -> Any:
    # Arrow's, because the stream reader of `zstandard`, which fsspec would take, ends a file that was cut off without
    # a word.
    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}


Line = tuple[bytes, int, bool]
"""A line without its end; how much of the file, as it is stored, was read for it; whether it was too long, and cut."""


def each_line(uri: str) -> Iterator[Line]:
    """All lines, also blank ones, ended by a newline and nothing else; raises `CorpusError` if the file is damaged."""
    with reading(uri):
        fs, path = fsspec.core.url_to_fs(uri)
        with fs.open(path, "rb", block_size=_REMOTE_BLOCK) as raw:
            # A file of no bytes is empty, however it should be compressed.
            if raw.read(1):
                raw.seek(0)
                yield from _split(_DECODERS[compression(path)](raw), raw.tell)


def _split(stream: Any, position: Callable[[], int]) -> Iterator[Line]:
    held, cut, before, mark = b"", False, 0, codecs.BOM_UTF8
    while data := stream.read(_CHUNK):
        first, *others = data.split(b"\n")
        held, cut = _capped(held + first.removeprefix(mark), cut)
        mark = b""
        if others:
            # What was read since the last line is shared out among the lines that end in this chunk.
            share, rest = divmod(position() - before, len(others))
            before += share * len(others) + rest
            yield held, share + rest, cut
            held, cut = others.pop(), False
            for line in others:
                yield line, share, False
    if held:
        yield held, position() - before, cut


def _capped(line: bytes, cut: bool) -> tuple[bytes, bool]:
    """The line, or if it is too long or already cut, its beginning; and whether it was cut."""
    cut = cut or len(line) > MAX_LINE_BYTES
    return (line[:_KEPT] if cut else line), cut
