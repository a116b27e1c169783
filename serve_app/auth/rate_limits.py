"""How often a key may be used: two token buckets a key, one for requests and one for generated tokens.

A bucket holds what a minute allows and fills evenly, so that a burst passes as long as the average is kept. Tokens are
known only after an answer: they are charged then, and a key that owes some waits until it has paid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from serve_app.auth.keys import KeyRecord


@dataclass
class _Bucket:
    level: float
    filled: float

    def fill(self, per_minute: int, now: float) -> None:
        self.level = min(per_minute, self.level + (now - self.filled) * per_minute / 60)
        self.filled = now


class Verdict(NamedTuple):
    """Whether a request may go on: `retry_after` is 0, or the seconds to wait for `what`; `headers` are for either."""

    retry_after: int
    what: str
    headers: dict[str, str]


@dataclass
class RateLimits:
    """The buckets of one process. All calls come from its event loop."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    clock: Callable[[], float]
    _buckets: dict[str, dict[str, _Bucket]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many keys have buckets."""
        return len(self._buckets)

    def admit(self, key: KeyRecord) -> Verdict:
        """Count one request of a key, if it may be made now."""
        wait, what, buckets = 0.0, "", []
        for unit, per_minute in self._limits(key).items():
            bucket = self._bucket(key.id, unit, per_minute)
            buckets.append((unit, per_minute, bucket))
            missing = (1 - bucket.level) * 60 / per_minute
            if missing > wait + 1e-6:
                wait, what = missing, unit
        if not what and buckets and buckets[0][0] == "requests":
            buckets[0][2].level -= 1
        headers = {name: value for unit, limit, bucket in buckets for name, value in _told(unit, limit, bucket)}
        return Verdict(max(1, math.ceil(wait - 1e-6)) if what else 0, what, headers)

    def charge(self, key: KeyRecord, tokens: int) -> None:
        """Take the tokens of an answer from what a key may still have."""
        per_minute = self._limits(key).get("tokens")
        if per_minute is not None:
            self._bucket(key.id, "tokens", per_minute).level -= tokens

    def keep(self, ids: Collection[str]) -> None:
        """Forget the keys that are not among `ids`."""
        self._buckets = {name: buckets for name, buckets in self._buckets.items() if name in ids}

    def _limits(self, key: KeyRecord) -> dict[str, int]:
        limits = {
            "requests": key.requests_per_minute or self.requests_per_minute,
            "tokens": key.tokens_per_minute or self.tokens_per_minute,
        }
        return {unit: per_minute for unit, per_minute in limits.items() if per_minute is not None}

    def _bucket(self, key_id: str, unit: str, per_minute: int) -> _Bucket:
        now = self.clock()
        bucket = self._buckets.setdefault(key_id, {}).setdefault(unit, _Bucket(per_minute, now))
        bucket.fill(per_minute, now)
        return bucket


def _told(unit: str, per_minute: int, bucket: _Bucket) -> list[tuple[str, str]]:
    """What OpenAI's clients read: the limit, what is left, and when the bucket is full again."""
    full = math.ceil((per_minute - bucket.level) * 60 / per_minute - 1e-6)
    return [
        (f"x-ratelimit-limit-{unit}", str(per_minute)),
        (f"x-ratelimit-remaining-{unit}", str(max(0, math.floor(bucket.level + 1e-6)))),
        (f"x-ratelimit-reset-{unit}", f"{full}s"),
    ]
