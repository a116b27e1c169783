"""A text encoder for tests: bags of words, as sentence-transformers saves and loads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from regrad.data.passages import Passage


def bag_of_words(folder: Path, passages: Iterable[Passage]) -> str:
    """The path of an encoder whose vector has a place for each word of these passages; an existing one is kept."""
    if not folder.exists():
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import BoW

        words = {word for p in passages for word in re.findall(r"\w+", f"{p.title} {p.text}".lower())}
        bag = BoW(vocab=sorted(words), word_weights={})
        SentenceTransformer(modules=[bag], device="cpu").save(str(folder))
    return str(folder)
