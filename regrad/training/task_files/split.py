"""Train and dev: whole articles go to the one or the other, so that no dev answer was read in training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from hashlib import sha256

from regrad.data.questions import Question
from regrad.errors import TrainingError
from regrad.text import counted


def draw_key(seed: int, purpose: str, name: str) -> str:
    """What to sort by for an order that depends on seed and id alone: a larger draw begins with a smaller one."""
    return sha256(f"{seed}|{purpose}|{name}".encode()).hexdigest()


def held_out(
    questions: Sequence[Question], parts: Mapping[str, Iterable[Hashable]], fraction: float, seed: int
) -> set[str]:
    """The ids of the dev questions: about `fraction` of them, never more.

    Questions that have one of their `parts` in common (by question id: articles or passages), or that are word for word
    the same, are on the same side. Raises `TrainingError` if that leaves nothing to hold out.
    """
    wanted = round(fraction * len(questions))
    if not wanted:
        return set()
    dev: set[str] = set()
    units = _units(questions, parts)
    for unit in sorted(units, key=lambda unit: draw_key(seed, "split", min(unit))):
        if len(dev) + len(unit) <= wanted:
            dev.update(unit)
    if not dev:
        smallest = min(map(len, units))
        raise TrainingError(
            f"{counted(wanted, 'question')} of {len(questions):,} should be kept for dev, and the smallest group that "
            f"shares articles or passages has {smallest:,}; raise dev_fraction, or set split_by to passage or question",
            code="cannot_split",
            wanted=wanted,
            smallest=smallest,
        )
    return dev


def _units(questions: Sequence[Question], parts: Mapping[str, Iterable[Hashable]]) -> list[list[str]]:
    """The ids of questions that hang together, in groups: a union-find over what they have in common."""
    above: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        above.setdefault(node, node)
        while above[node] != node:
            above[node] = above[above[node]]  # halves the way for whoever comes after
            node = above[node]
        return node

    for question in questions:
        words = " ".join(question.question.casefold().split())
        for part in (("words", words, question.choices), *(("part", part) for part in parts[question.id])):
            above[root(part)] = root(("question", question.id))
    units: dict[Hashable, list[str]] = defaultdict(list)
    for question in questions:
        units[root(("question", question.id))].append(question.id)
    return list(units.values())
