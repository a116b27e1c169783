"""MetaInits and banks that belong together, without a model, for tests of what servers follow."""

from __future__ import annotations

from pathlib import Path

import torch

from regrad.bank.format import Layout, Manifest
from regrad.meta_init import MetaInit
from regrad.models.config import ModelConfig
from serve_app.config import ServeConfig
from tests.tools.banks import PASSAGES, SUBSPACE, atoms, writer


def meta_init(folder: Path, seed: int = 0, base: str = "b" * 64) -> MetaInit:
    phi0 = torch.randn(SUBSPACE.size, generator=torch.Generator().manual_seed(seed))
    made = MetaInit(ModelConfig(path="none"), base, SUBSPACE, phi0, torch.ones(len(SUBSPACE.shapes)))
    made.save(folder)
    return made


def commit(uri: Path, made: MetaInit, seed: int = 0) -> Manifest:
    layout = Layout(fingerprint=made.fingerprint, codec="float32", subspace=SUBSPACE.to_json())
    return writer(str(uri), layout, PASSAGES, atoms(seed=seed)).commit()


def setup(folder: Path) -> ServeConfig:
    """One pair, and the settings of a server of it that follows `releases.json`."""
    commit(folder / "bank", meta_init(folder / "meta-init"))
    paths = {"meta_init": "meta-init", "bank": "bank", "index": "index", "releases": "releases.json"}
    return ServeConfig.model_validate(
        {key: str(folder / name) for key, name in paths.items()} | {"follow_seconds": 0.05}
    )
