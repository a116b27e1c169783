"""The MetaInits in the sources: that of `regrad try`, and that of the study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from regrad.cli.trial.config import MODEL, START
from regrad.meta_init import CARD, MetaInit
from regrad.models.known import KNOWN_MODELS

PLAIN = START.with_name(MODEL)
STARTS = pytest.mark.parametrize("place", [PLAIN, START], ids=lambda place: place.name)


@STARTS
def test_it_is_whole_small_and_names_no_machine(place: Path) -> None:
    start = MetaInit.load(place)
    assert start.phi0.equal(start.phi0.bfloat16().float())
    assert sum(file.stat().st_size for file in place.iterdir()) < 3.5e6
    card = json.loads((place / CARD).read_text())
    # As it is written: read where there is such a folder, as after `regrad try`, it becomes that folder's full path.
    assert card["model"]["path"] == f"models/{MODEL}" and MODEL in KNOWN_MODELS
    assert not any(isinstance(value, str) and value.startswith("/") for value in _values(card))


@pytest.mark.parametrize(("place", "nats"), [(PLAIN, 1.0), (START, 0.5)])
def test_it_reads(place: Path, nats: float) -> None:
    """What another passage's gradient costs, on articles never seen; half of the second's tasks have the right passage
    in the prompt, too."""
    (*_, last) = MetaInit.load(place).notes["dev"]
    assert last["loss_other"] - last["loss_right"] >= nats


@STARTS
def test_its_steps_are_finite_and_most_go_downhill(place: Path) -> None:
    sizes = MetaInit.load(place).step_sizes  # learned without bounds: some matrices may be moved uphill
    assert bool(torch.isfinite(sizes).all()) and float(sizes.median()) > 1 and float((sizes > 0).float().mean()) > 0.8


def _values(value: object) -> list[object]:
    if isinstance(value, dict):
        return [found for item in value.values() for found in _values(item)]
    return [found for item in value for found in _values(item)] if isinstance(value, list) else [value]
