"""What a LoRA that was trained on a corpus took and takes, of one passage, to compare it with banks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from regrad.adaptation.static import CARD, read_adapter_card
from regrad.errors import MethodError
from regrad.language_model.subspace import Subspace

_ON_PASSAGES = ("passages", "instruction")


@dataclass(frozen=True)
class CorpusCosts:
    """Training time in milliseconds of all workers (None if it was not noted) and float32 bytes, of one passage."""

    preparation_ms: float | None
    storage_bytes: float


def corpus_costs(uri: str | Path) -> CorpusCosts | None:
    """Of the adapter there; None if it was trained on questions, which takes no time for any passage.

    Of one that went on from another, only what came since. Raises `MethodError` if the card is damaged.
    """
    card = read_adapter_card(uri)
    try:
        notes, size = card["notes"], Subspace.from_json(card["subspace"]).size
        if notes.get("objective") not in _ON_PASSAGES:
            return None
        passages, seconds = int(notes["examples"]), notes.get("seconds")
        return CorpusCosts(None if seconds is None else 1e3 * float(seconds) / passages, 4.0 * size / passages)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise MethodError(f"{uri}/{CARD} is damaged: {type(error).__name__}: {error}") from error
