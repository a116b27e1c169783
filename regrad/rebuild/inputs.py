"""What a step reads, by its content: its settings with digests in the places of locations.

So the same corpus at another place is the same, and a corpus that has changed at its place is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regrad.bank.format import current_version, read_manifest
from regrad.data.content_digests import corpus_digest, directory_digest
from regrad.digests import SHORT, pieces_digest
from regrad.errors import RebuildError, StorageError
from regrad.meta_init import CARD as META_INIT_CARD
from regrad.meta_init import read_card
from regrad.models.local_files import model_digest
from regrad.rebuild.versions import OWN
from regrad.retrieval.base import CARD as INDEX_CARD
from regrad.retrieval.collection import card_digest
from regrad.storage import Storage, content_of

_DATA = frozenset({"corpus", "tasks", "dev", "uri"})
"""Keys of files of data that may be many: all of them are read."""
_WORDS = "prompts"
"""The key of templates: whatever they look like, they are no locations."""
_PACKAGE = "package:"


class Inputs:
    """Digests of what settings name; each place is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bool], str] = {}

    def digested(self, value: Any, key: str = "") -> Any:
        """A JSON value of settings with every location of something that exists replaced by its digest.

        Raises `RebuildError` for one where there is nothing, and what reading raises.
        """
        if key == _WORDS:
            return value
        if isinstance(value, dict):
            return {name: self.digested(inner, name) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.digested(inner, key) for inner in value]
        if not isinstance(value, str) or value.startswith(OWN):
            return value
        if value.startswith(_PACKAGE):
            return self._once(value, False, model_digest)
        if value.startswith("/") or "://" in value:
            is_data = key in _DATA
            return self._once(value, is_data, corpus_digest if is_data else content_digest)
        return value

    def _once(self, place: str, is_data: bool, digest: Callable[[str], str]) -> str:
        if (place, is_data) not in self._known:
            self._known[place, is_data] = digest(place)
        return self._known[place, is_data]


def content_digest(uri: str) -> str:
    """The digest of a file's bytes, of what an artefact says that it is, or of another directory's files.

    Raises `RebuildError` if there is nothing.
    """
    storage = Storage(uri)
    if storage.exists(META_INIT_CARD):
        return str(read_card(uri)["fingerprint"])
    if storage.exists("manifests") and current_version(storage):
        return read_manifest(storage).label
    if storage.exists(INDEX_CARD):
        return card_digest(uri)[:SHORT]
    files = storage.files()
    if not files:
        raise RebuildError(f"there is nothing at {uri}, which the settings name", code="input_not_found", uri=uri)
    return directory_digest(uri) if set(files) != {""} else pieces_digest(content_of(uri))[:SHORT]


def size_of(uri: str) -> int:
    """The bytes of all files at a place."""
    return sum(size for size, _ in Storage(uri).files().values())


def folder_digest(uri: str) -> str:
    """The digest of all files at a place; raises `StorageError` if it is not one that was written."""
    if not Storage(uri).files():
        raise StorageError(f"there are no files at {uri}", code="nothing_written", uri=uri)
    return directory_digest(uri)
