"""The files of a model on this machine, fetched or dequantised if need be, and their digest; no weights are loaded."""

from __future__ import annotations

from pathlib import Path

from regrad.data.content_digests import directory_digest
from regrad.digests import json_digest
from regrad.models.gguf_file import dequantised, gguf_in
from regrad.models.paths import place_of
from regrad.storage import local_directory


def resolve_path(path: str) -> str:
    """`package:NAME/PATH`, directory URIs and GGUF files become local directories; a hub name stays as it is.

    Raises `ModelError` for a local path where there is no directory.
    """
    place = place_of(path)
    local = str(local_directory(path)) if "://" in path else place
    file = gguf_in(Path(local))
    return local if file is None else str(dequantised(file))


def model_digest(path: str) -> str:
    """The digest of a model's files if it is a directory, else of its name."""
    local = resolve_path(path)
    return directory_digest(local) if Path(local).is_dir() else json_digest(path, ensure_ascii=False)
