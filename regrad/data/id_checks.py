"""Whether what was answered is what was asked: ids that are missing, unknown or double."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from regrad.errors import EvaluationError

_SHOWN = 5
_SHOWN_CHARACTERS = 60


def counted(count: int, noun: str) -> str:
    """Such as "1 passage" or "3 passages"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(label: str, items: Collection[str]) -> list[str]:
    """One short sentence such as "7 missing: a, b, c, d, e, ...", or nothing."""
    if not items:
        return []
    shown = [item if len(item) <= _SHOWN_CHARACTERS else item[:_SHOWN_CHARACTERS] + "..." for item in _first(items)]
    more = ", ..." if len(items) > _SHOWN else ""
    return [f"{len(items)} {label}: {', '.join(map(repr, shown))}{more}"]


def _first(items: Collection[str]) -> list[str]:
    return [item for item, _ in zip(items, range(_SHOWN), strict=False)]


def mismatches(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Sentences about ids that are expected and not found, found and not expected, or found twice."""
    counts, wanted = Counter(found), set(expected)
    return [
        *listed("missing", sorted(wanted - counts.keys())),
        *listed("unknown", sorted(counts.keys() - wanted)),
        *listed("more than once", sorted(name for name, count in counts.items() if count > 1)),
    ]


def refuse(what: str, problems: Collection[str]) -> None:
    """Raise `EvaluationError` with all the problems, if there is one."""
    if problems:
        raise EvaluationError(f"{what}: {'; '.join(problems)}")
