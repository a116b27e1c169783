"""SQuAD-style answer scores."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (the SQuAD evaluation script's rules)."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals any of the accepted answers after normalisation."""
    return normalise(prediction) in {normalise(answer) for answer in answers}
