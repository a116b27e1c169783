"""Whether what was answered is what was asked: ids that are missing, unknown or double."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

from regrad.errors import EvaluationError
from regrad.text import listed

_SHOWN = 5
_SHOWN_CHARACTERS = 60


class Problem(NamedTuple):
    """What is wrong with some ids or other short texts; written such as "7 missing: 'a', 'b' and 5 more"."""

    label: str
    items: list[str]

    def __str__(self) -> str:
        cut = [item if len(item) <= _SHOWN_CHARACTERS else item[:_SHOWN_CHARACTERS] + "..." for item in self.items]
        return f"{len(self.items)} {self.label}: {listed(list(map(repr, cut)), _SHOWN)}"


def problem(label: str, items: Collection[str]) -> list[Problem]:
    """One problem, or none if there is no item."""
    return [Problem(label, list(items))] if items else []


def mismatches(found: Iterable[str], expected: Iterable[str]) -> list[Problem]:
    """The ids that are expected and not found, found and not expected, or found twice."""
    counts, wanted = Counter(found), set(expected)
    return [
        *problem("missing", sorted(wanted - counts.keys())),
        *problem("unknown", sorted(counts.keys() - wanted)),
        *problem("more than once", sorted(name for name, count in counts.items() if count > 1)),
    ]


def refuse(what: str, problems: Collection[Problem], code: str = "ids_do_not_match") -> None:
    """Raise `EvaluationError` with all the problems, if there is one; its field `problems` has the items by label."""
    if problems:
        items = {found.label: found.items for found in problems}
        raise EvaluationError(f"{what}: {'; '.join(map(str, problems))}", code=code, problems=items)
