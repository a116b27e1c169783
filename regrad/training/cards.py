"""The cards of trained artefacts: what each directory's JSON file must say, and the digest over what it is for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from regrad.errors import MethodError
from regrad.storage import Storage


@dataclass(frozen=True)
class CardKind:
    """The cards of one kind of artefact: `file` in its directory, of one format, made by one verb of the command line.

    `strings` are the entries that any card of this kind has besides its format; all are texts.
    """

    name: str
    file: str
    made_by: str
    strings: tuple[str, ...]
    format: int = 1

    def read(self, uri: str | Path) -> dict[str, Any]:
        """The card alone (a few KB); raises `MethodError` if there is none or it is not one of ours."""
        storage = Storage(uri)
        if not storage.exists(self.file):
            raise MethodError(
                f"there is no {self.name} at {uri}: {self.file} is missing; make one with `{self.made_by}`",
                code=f"{self.name}_not_found",
                uri=str(uri),
            )
        try:
            card = json.loads(storage.read(self.file))
        except ValueError as error:
            raise self.damaged(uri, f"{self.file} is not JSON") from error
        known = isinstance(card, dict) and card.get("format") == self.format
        if not known or not all(isinstance(card.get(name), str) for name in self.strings):
            raise self.damaged(uri, f"{self.file} is not the card of a {self.name} of format {self.format}")
        found: dict[str, Any] = card
        return found

    def damaged(self, uri: str | Path, reason: str = "its content is not what its card says") -> MethodError:
        """The error that says so."""
        return MethodError(f"the {self.name} at {uri} is damaged: {reason}", code=f"{self.name}_damaged", uri=str(uri))


def digest_of(head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The first 16 hex digits of SHA-256 over what an artefact is for, and its numbers, which are float32."""
    found = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()[:16]
