"""Whether what was answered is what was asked: ids that are missing, unknown or double."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from regrad.errors import EvaluationError
from regrad.text import listed

_SHOWN = 5
_SHOWN_CHARACTERS = 60


def problem(label: str, items: Collection[str]) -> list[str]:
    """One short sentence such as "7 missing: 'a', 'b', 'c', 'd', 'e' and 2 more", or nothing."""
    if not items:
        return []
    shown = [item if len(item) <= _SHOWN_CHARACTERS else item[:_SHOWN_CHARACTERS] + "..." for item in items]
    return [f"{len(items)} {label}: {listed(list(map(repr, shown)), _SHOWN)}"]


def mismatches(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Sentences about ids that are expected and not found, found and not expected, or found twice."""
    counts, wanted = Counter(found), set(expected)
    return [
        *problem("missing", sorted(wanted - counts.keys())),
        *problem("unknown", sorted(counts.keys() - wanted)),
        *problem("more than once", sorted(name for name, count in counts.items() if count > 1)),
    ]


def refuse(what: str, problems: Collection[str]) -> None:
    """Raise `EvaluationError` with all the problems, if there is one."""
    if problems:
        raise EvaluationError(f"{what}: {'; '.join(problems)}")
