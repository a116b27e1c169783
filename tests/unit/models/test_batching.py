"""How many tokens go through a model at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch

from regrad.models.batching import tokens_of_a_pass
from regrad.models.loading import LanguageModel


def sized(device: str = "cpu", dtype: torch.dtype = torch.float32, **config: Any) -> LanguageModel:
    """As much of SmolLM2-135M as is looked at."""
    sizes = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536} | config
    model = SimpleNamespace(device=torch.device(device), compute_dtype=dtype, text_config=SimpleNamespace(**sizes))
    return cast(LanguageModel, model)


def test_a_pass_is_as_large_as_wanted_and_else_fits_a_processor(tiny: LanguageModel) -> None:
    assert tokens_of_a_pass(sized(), 3) == 3
    assert tokens_of_a_pass(tiny, None) == tokens_of_a_pass(sized("cuda"), None) == 8192
    here = tokens_of_a_pass(sized(), None)
    assert 500 < here < 1500
    assert tokens_of_a_pass(sized(dtype=torch.bfloat16), None) in (2 * here, 2 * here + 1)
    assert tokens_of_a_pass(sized(intermediate_size=None), None) < 8192
    assert tokens_of_a_pass(sized(hidden_size=10**6, intermediate_size=10**7), None) == 1
