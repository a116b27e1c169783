"""What training a retriever makes, as it lies in a checkpoint: indexes are written of it at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regrad.retrieval.encoder import Encoder
from regrad.retrieval.reranked import CrossEncoder
from regrad.storage import directory_writer
from regrad.training.checkpoint import Product

TRAINED = "retriever"
"""The directory of the product in a checkpoint; in it are a card and what was trained, each by its name."""
CARD, ENCODER, PASSAGES, SELECTOR, GENERATOR = "retriever.json", "encoder", "passages", "selector", "generator"


@dataclass(frozen=True)
class TrainedEncoder:
    """A question encoder as it is now, the digest of the passages' encoder that it belongs to, and notes on the run.

    `generator` and `passages`, the passages' encoder, are what was trained with it.
    """

    encoder: Encoder
    passages_digest: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    generator: Product | None = None
    passages: Encoder | None = None

    def save(self, uri: Path, /) -> None:
        """Write the directory, whole or not at all."""
        with directory_writer(uri, CARD) as folder:
            self.encoder.save(folder / ENCODER)
            if self.passages is not None:
                self.passages.save_passages(folder / PASSAGES)
            _finish(folder, self.generator, {"passages_digest": self.passages_digest, "notes": dict(self.notes)})


@dataclass(frozen=True)
class TrainedSelector:
    """A cross-encoder as it is now, notes on the run, and the generator, if that was trained with it."""

    selector: CrossEncoder
    notes: Mapping[str, Any] = field(default_factory=dict)
    generator: Product | None = None

    def save(self, uri: Path, /) -> None:
        """Write the directory, whole or not at all."""
        with directory_writer(uri, CARD) as folder:
            self.selector.save(folder / SELECTOR)
            _finish(folder, self.generator, {"notes": dict(self.notes)})


Trained = TrainedEncoder | TrainedSelector
"""What a run of training makes."""


def _finish(folder: Path, generator: Product | None, card: Mapping[str, Any]) -> None:
    if generator is not None:
        generator.save(folder / GENERATOR)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")
