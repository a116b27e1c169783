"""Digests of what lies at a place, by its content: so the same files elsewhere are the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from regrad.data.files import corpus_files
from regrad.digests import SHORT, pieces_digest
from regrad.storage import Storage, content_of

# Of a file of more than 16 MB, this many pieces of this size are hashed, and of a corpus everything.
_PIECES = 256
_PIECE = 1 << 16


def corpus_digest(uri: str) -> str:
    """The digest of the content of every file of a corpus."""
    return pieces_digest(piece for file in corpus_files(uri) for piece in content_of(file.uri))[:SHORT]


def directory_digest(uri: str) -> str:
    """The digest of every file's name, size and content; of a large file only of pieces at even distances."""
    return pieces_digest(_pieces(Storage(uri)))[:SHORT]


def _pieces(storage: Storage) -> Iterator[bytes]:
    for name, (size, _) in sorted(storage.files().items()):
        yield f"{name}|{size}|".encode()
        starts: Iterable[int] = range(0, size, _PIECE)
        if size > _PIECE * _PIECES:
            step = (size - _PIECE) / (_PIECES - 1)
            starts = (int(step * number) for number in range(_PIECES))
        for start in starts:
            yield storage.read(name, start, min(size, start + _PIECE))
