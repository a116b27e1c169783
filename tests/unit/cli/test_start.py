"""The MetaInit that comes with the package, which `regrad try` answers with."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from regrad.cli.trial.config import MODEL, START
from regrad.meta_init import CARD, MetaInit
from regrad.models.known import KNOWN_MODELS


def test_it_is_whole_small_and_names_no_machine() -> None:
    start = MetaInit.load(START)
    assert start.model.path == f"models/{MODEL}" and MODEL in KNOWN_MODELS
    assert start.phi0.equal(start.phi0.bfloat16().float())
    assert sum(file.stat().st_size for file in START.iterdir()) < 3.5e6
    card = json.loads((Path(START) / CARD).read_text())
    assert not any(isinstance(value, str) and value.startswith("/") for value in _values(card))


def test_it_reads() -> None:
    (*_, last) = MetaInit.load(START).notes["dev"]
    assert last["loss_other"] - last["loss_right"] >= 1.0, "nats that another passage costs, on articles never seen"


def test_its_steps_are_finite_and_most_go_downhill() -> None:
    sizes = MetaInit.load(START).step_sizes  # learned without bounds: some matrices may be moved uphill
    assert bool(torch.isfinite(sizes).all()) and float(sizes.median()) > 1 and float((sizes > 0).float().mean()) > 0.8


def _values(value: object) -> list[object]:
    if isinstance(value, dict):
        return [found for item in value.values() for found in _values(item)]
    return [found for item in value for found in _values(item)] if isinstance(value, list) else [value]
