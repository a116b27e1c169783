"""Short hashes of everything that a result depends on: if one changes, the cells that used it run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regrad.bank.format import read_manifest
from regrad.data.files import corpus_files
from regrad.data.questions import Question
from regrad.meta_init import read_card
from regrad.models.loading import resolve_path
from regrad.retrieval.base import check_index
from regrad.storage import Storage

_PIECE, _PIECES = 1 << 16, 256


def digest(value: Any) -> str:
    """16 hex digits of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def questions_digest(questions: Sequence[Question]) -> str:
    """Of all that the questions are."""
    return digest([asdict(question) for question in questions])


def demonstrations_digest(demonstrations: Sequence[Question]) -> str:
    """Of all that prompts show of them, in their order."""
    return digest([[one.kind, one.question, one.choices, one.answers[0]] for one in demonstrations])


def corpus_digest(uri: str) -> str:
    """Of the content of every file of a corpus."""
    hasher = hashlib.sha256()
    for file in corpus_files(uri):
        storage, name = Storage(file.uri.rpartition("/")[0]), file.uri.rpartition("/")[2]
        _read_into(hasher.update, storage, name, file.bytes)
    return hasher.hexdigest()[:16]


def index_digest(uri: str) -> str:
    """Of an index, whose card has the checksum of every file. Lucene draws ids anew for each build of a corpus."""
    return digest(check_index(uri).model_dump())


def bank_digest(uri: str, version: int | None) -> str:
    """The label of a version (the one in force by default)."""
    return read_manifest(Storage(uri), version).label


def meta_init_digest(uri: str) -> str:
    """The MetaInit's own fingerprint."""
    return str(read_card(uri)["fingerprint"])


def directory_digest(uri: str) -> str:
    """Of an adapter, or of anything that is one directory."""
    return _directory_digest(Storage(uri))


def model_digest(path: str) -> str:
    """Of a base model's files if it is a directory, or else (a hub name) of its name."""
    local = resolve_path(path)
    return _directory_digest(Storage(local)) if Path(local).is_dir() else digest(path)


def _directory_digest(storage: Storage) -> str:
    """Of every file's name, size and content; of a large file only pieces, at even distances."""
    hasher = hashlib.sha256()
    for name, (size, _) in sorted(storage.files().items()):
        hasher.update(f"{name}|{size}|".encode())
        for start in _starts(size):
            hasher.update(storage.read(name, start, min(size, start + _PIECE)))
    return hasher.hexdigest()[:16]


def _starts(size: int) -> Iterable[int]:
    if size <= _PIECE * _PIECES:
        return range(0, size, _PIECE)
    step = (size - _PIECE) / (_PIECES - 1)
    return (int(step * number) for number in range(_PIECES))


def _read_into(update: Callable[[bytes], Any], storage: Storage, name: str, size: int) -> None:
    most = 1 << 24
    for start in range(0, max(size, 1), most):
        update(storage.read(name, start, min(size, start + most)) if size else b"")
