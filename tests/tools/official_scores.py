"""What the published evaluation scripts compute for one prediction and one answer, written down anew, step by step.

SQuAD v1.1: `evaluate-v1.1.py` of https://rajpurkar.github.io/SQuAD-explorer (the maximum over the answers is taken of
each metric by itself). HotpotQA: `hotpot_evaluate_v1.py` of https://github.com/hotpotqa/hotpot (Apache 2.0).
Nothing here is shared with `regrad.evaluation`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable


def official_words(text: str) -> list[str]:
    """Lower case; then punctuation out, joining what it parted; then articles out; then split at white space."""
    kept = [character for character in text.lower() if character not in string.punctuation]
    return re.sub(r"\b(a|an|the)\b", " ", "".join(kept)).split()


def official_exact_match(prediction: str, answer: str) -> bool:
    return " ".join(official_words(prediction)) == " ".join(official_words(answer))


def squad_scores(prediction: str, answer: str) -> tuple[float, float, float]:
    """F1, precision, recall: each word of the answer can be found as often as it stands there."""
    said, left = official_words(prediction), official_words(answer)
    length, same = len(left), 0
    for word in said:
        if word in left:
            left.remove(word)
            same += 1
    if same == 0:
        return 0.0, 0.0, 0.0
    precision, recall = 1.0 * same / len(said), 1.0 * same / length
    return 2 * precision * recall / (precision + recall), precision, recall


def hotpot_scores(prediction: str, answer: str) -> tuple[float, float, float]:
    """The same, but nothing for yes, no or noanswer unless both are the same."""
    said, known = " ".join(official_words(prediction)), " ".join(official_words(answer))
    special = ["yes", "no", "noanswer"]
    if said in special and said != known:
        return 0.0, 0.0, 0.0
    if known in special and said != known:
        return 0.0, 0.0, 0.0
    return squad_scores(prediction, answer)


OFFICIAL: dict[str, Callable[[str, str], tuple[float, float, float]]] = {
    "squad": squad_scores,
    "hotpotqa": hotpot_scores,
}
