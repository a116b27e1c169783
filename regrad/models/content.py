"""What a model is by its files, without loading it."""

from __future__ import annotations

from pathlib import Path

from regrad.data.content_digests import directory_digest
from regrad.digests import json_digest
from regrad.models.loading import resolve_path


def model_digest(path: str) -> str:
    """The digest of a model's files if it is a directory, else of its name."""
    local = resolve_path(path)
    return directory_digest(local) if Path(local).is_dir() else json_digest(path, ensure_ascii=False)
