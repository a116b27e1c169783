"""A MetaInit on disk, for what imports gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regrad.meta_init import MetaInit
from regrad.models.config import ModelConfig
from tests.tools.banks import SUBSPACE


@pytest.fixture
def meta_init(tmp_path: Path) -> str:
    made = MetaInit(ModelConfig(path="none"), "0" * 64, SUBSPACE, SUBSPACE.initial(), torch.ones(4))
    made.save(tmp_path / "meta-init")
    return str(tmp_path / "meta-init")
