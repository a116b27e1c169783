"""The versions that rebuilds have made, which of them is current, and the one before it.

`versions/ID.json` says what a version is made of, `current.json` which one is current; both are written whole. To go
back is to name the one before. Only `regrad/rebuild/prune.py` removes versions.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from regrad.errors import NotPromoted, RebuildError
from regrad.settings import Settings
from regrad.storage import Storage

CURRENT, _FOLDER = "current.json", "versions"
PRUNING = "pruning.json"
"""What an interrupted prune has left to do."""
OWN = "version://"
"""Begins the location of something that belongs to the version: `version://bank`."""

S = TypeVar("S", bound=Settings)


class PromotionConfig(Settings):
    """The figure that a version has to hold, from 0 to 1, measured on the evaluation's questions."""

    method: str = Field("regrad", description="one of the evaluation's methods")
    set: str | None = Field(None, description="one of the evaluation's question sets; the first if null")
    k: int | None = Field(None, ge=1, description="one of the evaluation's k; the first if null")
    metric: Literal["em", "f1"] = "f1"
    minimum: float = Field(0.0, ge=0, le=1, description="lowest score for a promotion")
    allowed_drop: float = Field(
        0.0, ge=0, le=1, description="how far the score may be below that of the current version"
    )


class Version(Settings):
    """A version: its parts by name (`bank` for `version://bank`), each with its place and the key of its step.

    A place is a name below the rebuild's output, or an absolute location. `bank_version` is the one of the bank,
    `searched` names the indexes that were made of the corpus itself: what a collection takes.
    """

    id: str = Field(pattern=r"^\d{4,}-[0-9a-f]{12}$")
    places: dict[str, str]
    keys: dict[str, str]
    bank_version: int = Field(ge=1)
    passages: int = Field(ge=0)
    searched: tuple[str, ...] = ()

    def places_in(self, output: Storage) -> dict[str, str]:
        """The location of every part."""
        return {name: absolute(place, output) for name, place in self.places.items()}


class Current(Settings):
    """The current version and the one before it. `left` was current and was rolled back: it is not taken again."""

    version: str
    previous: str | None = None
    left: str | None = None


class Versions:
    """The versions of a rebuild's output. Every call raises `RebuildError` for a damaged file."""

    def __init__(self, output: Storage) -> None:
        self._output = output

    def current(self) -> Current | None:
        """The current version; None if none was promoted yet."""
        return self._parsed(Current, CURRENT) if self._output.exists(CURRENT) else None

    def ids(self) -> list[str]:
        """All versions, the oldest first."""
        return sorted(name.removesuffix(".json") for name in self._output.list(_FOLDER) if name.endswith(".json"))

    def read(self, name: str) -> Version:
        """A version by its id."""
        return self._parsed(Version, f"{_FOLDER}/{name}.json")

    def take(self, digest: str, content: dict[str, Any]) -> Version:
        """The version with this digest of its parts, written if there is none yet."""
        there = self.ids()
        for name in there:
            if name.endswith(f"-{digest}"):
                return self.read(name)
        number = 1 + max((int(name.partition("-")[0]) for name in there), default=0)
        version = Version(id=f"{number:04d}-{digest}", **content)
        self._write(f"{_FOLDER}/{version.id}.json", version)
        return version

    def remove(self, name: str) -> None:
        """Remove a version by its id, if it is there; its parts stay."""
        self._output.remove_file(f"{_FOLDER}/{name}.json")

    def promote(self, version: Version) -> Current:
        """Make the version current; the one that was is kept as the previous."""
        before = self.current()
        if before and before.version == version.id:
            return before
        current = Current(version=version.id, previous=before.version if before else None)
        self._write(CURRENT, current)
        return current

    def rolled_back(self) -> Current:
        """What `put` would have to write to go back to the previous version; raises `RebuildError` without one."""
        current = self.current()
        if current is None or current.previous is None:
            raise RebuildError(
                f"there is nothing to roll back to at {self._output.uri}: fewer than two versions were promoted",
                code="nothing_to_roll_back",
                uri=self._output.uri,
            )
        return Current(version=current.previous, previous=current.version, left=current.version)

    def put(self, current: Current) -> None:
        """Write which version is current."""
        self._write(CURRENT, current)

    def _write(self, name: str, content: Settings) -> None:
        self._output.write(name, (content.model_dump_json(indent=1) + "\n").encode())

    def _parsed(self, kind: type[S], name: str) -> S:
        try:
            return kind.model_validate_json(self._output.read(name))
        except ValidationError as error:
            uri = f"{self._output.uri}/{name}"
            text = f"{uri} is damaged; put it back from a copy"
            raise RebuildError(text, code="version_damaged", uri=uri) from error


def absolute(place: str, output: Storage) -> str:
    """A place's location: of a name below `output`, or as it is."""
    return place if "://" in place or place.startswith("/") else f"{output.uri}/{place}"


def own_replaced(value: Any, parts: dict[str, str]) -> Any:
    """A JSON value with every `version://NAME` replaced by what `parts` has for the name.

    Raises `RebuildError` for a name that the version does not have.
    """
    if isinstance(value, dict):
        return {key: own_replaced(inner, parts) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [own_replaced(inner, parts) for inner in value]
    if not isinstance(value, str) or not value.startswith(OWN):
        return value
    name = value.removeprefix(OWN)
    if name not in parts:
        raise RebuildError(
            f"{value} is read, but the version has no such part; it has {', '.join(sorted(parts))}",
            code="no_such_part",
            part=name,
            parts=sorted(parts),
        )
    return parts[name]


def check_score(rule: PromotionConfig, version: str, score: float, against: str | None, before: float | None) -> str:
    """One line about a score that holds.

    Raises `NotPromoted` if it is below the minimum, or further below that of the current version than is allowed.
    """
    figure = f"{rule.metric} of {rule.method}"
    # Differences of two decimal fractions are not exact: a drop that is just allowed must not fail by the last bit.
    slack = 1e-9
    if score < rule.minimum - slack:
        raise NotPromoted(
            f"version {version} is kept aside: its {figure} is {score:.4f}, below promotion.minimum {rule.minimum:g}",
            code="below_minimum",
            version=version,
            score=score,
            minimum=rule.minimum,
        )
    if before is not None and before - score > rule.allowed_drop + slack:
        raise NotPromoted(
            f"version {version} is kept aside: its {figure} is {score:.4f}, and that of {against}, which stays "
            f"current, is {before:.4f}; promotion.allowed_drop is {rule.allowed_drop:g}",
            code="score_fell",
            version=version,
            score=score,
            current=against,
            current_score=before,
        )
    compared = f", and that of {against} was {before:.4f}" if before is not None else ""
    return f"its {figure} is {score:.4f}{compared}"
