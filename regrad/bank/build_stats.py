"""What a version of a bank took to make: a note beside the bank, as the same bank takes another time each time."""

from __future__ import annotations

import re

from pydantic import Field, ValidationError

from regrad.settings import Settings
from regrad.storage import Storage

_NOTE = re.compile(r"(\d{8})\.json")


class Preparation(Settings):
    """Passages that were computed for a version, and how long the workers were at it, all of them added up.

    Loading the model is not in it, nor is what was taken over from the version before.
    """

    passages: int = Field(ge=0)
    seconds: float = Field(ge=0)

    @property
    def milliseconds_per_passage(self) -> float | None:
        """None if nothing was computed."""
        return 1e3 * self.seconds / self.passages if self.passages else None


def note_preparation(bank: str, version: int, preparation: Preparation) -> None:
    """Note what a version of the bank at a URI took."""
    _notes(bank).write(f"{version:08d}.json", preparation.model_dump_json().encode())


def read_preparation(bank: str, version: int) -> Preparation | None:
    """What the version took, or if nothing was computed for it the one before; None if nothing readable was noted."""
    storage = _notes(bank)
    found = (_NOTE.fullmatch(name) for name in storage.list())
    numbers = sorted((int(match[1]) for match in found if match and int(match[1]) <= version), reverse=True)
    for number in numbers:
        try:
            noted = Preparation.model_validate_json(storage.read(f"{number:08d}.json"))
        except ValidationError:
            continue
        if noted.passages:
            return noted
    return None


def _notes(bank: str) -> Storage:
    return Storage(f"{bank.rstrip('/')}.preparation")
