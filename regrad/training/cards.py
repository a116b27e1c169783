"""Trained artefacts: a directory with numbers and a card that says what they are for; its writing, reading and checks.

An artefact's own file says what its card holds and which files its numbers are in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from regrad.digests import SHORT, json_bytes, pieces_digest
from regrad.errors import MethodError, ModelError
from regrad.storage import Storage, directory_writer, local_directory

# What reading raises where a card, or a file of numbers, is cut off, of another shape or not what it was.
_DAMAGE = (OSError, KeyError, SafetensorError, ValueError, ModelError, TypeError, RuntimeError)


@dataclass(frozen=True)
class CardKind:
    """The cards of one kind of artefact: `file` in its directory, of one format, made by one verb of the command line.

    Its `name` begins the codes of its errors; `strings` are the entries that any card of this kind has besides its
    format; all are texts.
    """

    name: str
    file: str
    made_by: str
    strings: tuple[str, ...]
    format: int = 1

    @property
    def words(self) -> str:
        """The name in a sentence."""
        return self.name.replace("_", " ")

    def read(self, uri: str | Path) -> dict[str, Any]:
        """The card alone (a few KB); raises `MethodError` if there is none or it is not one of ours."""
        storage = Storage(uri)
        if not storage.exists(self.file):
            raise MethodError(
                f"there is no {self.words} at {uri}: {self.file} is missing; make one with `{self.made_by}`",
                code=f"{self.name}_not_found",
                uri=str(uri),
            )
        try:
            card = json.loads(storage.read(self.file))
        except ValueError as error:
            raise self.damaged(uri, f"{self.file} is not JSON") from error
        if not isinstance(card, dict) or card.get("format") != self.format:
            raise self._other_format(uri, card.get("format") if isinstance(card, dict) else None)
        if not all(isinstance(card.get(name), str) for name in self.strings):
            raise self.damaged(uri, f"{self.file} lacks one of {', '.join(self.strings)}")
        found: dict[str, Any] = card
        return found

    def write(self, uri: str | Path, entries: Mapping[str, Any], fill: Callable[[Path], object]) -> None:
        """Write a directory, whole or not at all: what `fill` puts into it, and the card; one of ours is replaced."""
        with directory_writer(uri, self.file) as folder:
            fill(folder)
            (folder / self.file).write_text(json.dumps({"format": self.format, **entries}, indent=2) + "\n")

    @contextmanager
    def opened(self, uri: str | Path) -> Iterator[tuple[dict[str, Any], Path]]:
        """The card, and the directory on this machine; what reading them raises in the block is that it is damaged.

        Raises `MethodError` as `read`.
        """
        card = self.read(uri)
        try:
            yield card, local_directory(uri)
        except _DAMAGE as error:
            raise self.damaged(uri, f"{type(error).__name__}: {error}") from error

    def check_content(self, uri: str | Path, as_its_card_says: bool, numbers: Iterable[Tensor]) -> None:
        """Raise `MethodError` unless what was read is what the card says, and all its numbers are finite."""
        if not as_its_card_says or not all(bool(torch.isfinite(values).all()) for values in numbers):
            raise self.damaged(uri)

    def damaged(self, uri: str | Path, reason: str = "its content is not what its card says") -> MethodError:
        """The error that says so."""
        return MethodError(
            f"the {self.words} at {uri} is damaged: {reason}; copy it again, or make it again with `{self.made_by}`",
            code=f"{self.name}_damaged",
            uri=str(uri),
        )

    def _other_format(self, uri: str | Path, found: object) -> MethodError:
        return MethodError(
            f"the {self.words} at {uri} has format {found!r:.40}, and this version of regrad reads format "
            f"{self.format}: make it again with `{self.made_by}`, or use the version that made it",
            code=f"{self.name}_other_format",
            uri=str(uri),
            expected=self.format,
            found=found,
        )


def digest_of(head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The first 16 hex digits of SHA-256 over what an artefact is for, and its numbers, which are float32."""
    numbers = (name.encode() + value.numpy().tobytes() for name, value in sorted(tensors.items()))
    return pieces_digest([json_bytes(head), *numbers])[:SHORT]
