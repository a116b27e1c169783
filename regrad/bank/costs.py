"""What it costs to have an atom, fetched or computed, as measured on the way."""

from __future__ import annotations

import threading

_WEIGHT = 0.2
_TRY_AGAIN = 50


class Costs:
    """Milliseconds an atom fetched, and a character of a passage computed, as moving averages. Safe for threads.

    Both sides are tried once before they are compared. The one that loses is tried again now and then, since caches
    fill and stores recover.
    """

    def __init__(self) -> None:
        self._fetch: float | None = None
        self._compute: float | None = None
        self._asked = 0
        self._lock = threading.Lock()

    def fetched(self, atoms: int, milliseconds: float) -> None:
        """So many atoms were fetched together in this time."""
        with self._lock:
            self._fetch = _average(self._fetch, milliseconds / max(1, atoms))

    def computed(self, characters: int, milliseconds: float) -> None:
        """Passages of so many characters were computed together in this time."""
        with self._lock:
            self._compute = _average(self._compute, milliseconds / max(1, characters))

    def prefers_computing(self, characters: int) -> bool:
        """Whether a passage of this length, which is not in memory, is had sooner by computing it."""
        with self._lock:
            self._asked += 1
            if self._fetch is None or self._compute is None:
                return self._compute is None and self._fetch is not None
            cheaper = self._compute * characters < self._fetch
            return not cheaper if self._asked % _TRY_AGAIN == 0 else cheaper

    def measured(self) -> dict[str, float | None]:
        """The averages as they are now."""
        return {"fetch_ms_per_atom": self._fetch, "compute_ms_per_character": self._compute}


def _average(before: float | None, now: float) -> float:
    return now if before is None else (1 - _WEIGHT) * before + _WEIGHT * now
