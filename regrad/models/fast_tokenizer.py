"""The tokenizer of a model without its weights, for whoever counts tokens of many texts."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from regrad.errors import ModelError
from regrad.models.checkpoint import load_without_weights
from regrad.models.local_files import resolve_path


def load_fast_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a model, without its weights, or the one in a `tokenizer.json`: what counts tokens of a text.

    Raises `ModelError` if there is none, or only one in Python.
    """
    local = resolve_path(path)
    file = Path(local) if local.endswith(".json") else Path(local, "tokenizer.json")
    if file.is_file():
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # of the Rust library, which has no class of its own for it
            raise ModelError(f"{file} is not a tokenizer: {error}", code="no_tokenizer", path=path) from error
    _, tokenizer = load_without_weights(local, path)
    found = getattr(tokenizer, "_tokenizer", None)
    if not isinstance(found, Tokenizer):
        text = f"{path} has no tokenizer.json, only a tokenizer in Python, which is too slow for a corpus"
        raise ModelError(text, code="no_tokenizer", path=path)
    return found
