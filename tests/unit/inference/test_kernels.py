"""The engine's kernels compute what the model's own do, only in its own passes, and only where they are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regrad.inference import kernels as kernels_module
from regrad.inference import verification
from regrad.inference.engine import Engine
from regrad.inference.kernels import Kernels, grouped_attention, large_product
from regrad.inference.rows import DecodingRequest
from regrad.models.loading import LanguageModel
from tests.tools.decoded import PROMPTS, run, update
from tests.tools.random_models import loaded, random_model

REQUESTS = [(prompt, seed) for prompt in PROMPTS for seed in (None, 1, 2)]


def requests(lm: LanguageModel) -> list[DecodingRequest]:
    return [DecodingRequest(prompt, () if seed is None else update(lm, seed), 10) for prompt, seed in REQUESTS]


@pytest.fixture
def all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the layers of a tiny model count as large."""
    monkeypatch.setattr(kernels_module, "_LEAST_NUMBERS", 1)


def test_each_choice_of_kernels_gives_the_same_tokens(all_layers: None, tiny: LanguageModel) -> None:
    *faster, own = Kernels.choices(tiny)
    assert len(faster) == 2
    expected = [heard.text for heard in run(Engine(tiny, kernels=own), requests(tiny))]
    for kernels in faster:
        assert [heard.text for heard in run(Engine(tiny, kernels=kernels), requests(tiny))] == expected


@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 40])
@pytest.mark.parametrize("outputs", [24, kernels_module._VOCABULARY])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_with_the_large_product_is_the_layer_s(tokens: int, outputs: int, bias: bool) -> None:
    """Up to the order of sums over 12 numbers in float32."""
    torch.manual_seed(0)
    layer, x_NTD = nn.Linear(12, outputs, bias=bias).requires_grad_(False), torch.randn(tokens, 1, 12)
    found = large_product(x_NTD, layer.weight, layer.bias if bias else None)
    torch.testing.assert_close(found, layer(x_NTD), rtol=1e-5, atol=1e-6)


def test_grouped_attention_is_attention_with_copied_heads() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    mask = torch.where(torch.rand(2, 1, 5, 9) < 0.7, 0.0, torch.finfo(torch.float32).min)
    found, _ = grouped_attention(nn.Module(), query, key, value, mask, scaling=0.3)
    copied_key, copied_value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    scores = query @ copied_key.mT * 0.3 + mask
    torch.testing.assert_close(found, (scores.softmax(-1) @ copied_value).transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_outside_the_engine_s_passes_the_model_is_as_it_was(all_layers: None, tiny: LanguageModel) -> None:
    """So gradients are taken through the attention and the layers of its settings."""
    seen: list[Any] = []
    tiny.model.model.layers[0].register_forward_hook(  # type: ignore[union-attr,index,operator]
        lambda layer, *_: seen.append(
            (layer.self_attn.config._attn_implementation, "forward" in vars(layer.mlp.up_proj))
        )
    )
    engine = Engine(tiny)
    seen.clear()
    run(engine, [DecodingRequest("a", (), 2)])
    assert set(seen) == {(kernels_module._NAME, True)}
    seen.clear()
    tiny.model(input_ids=torch.tensor([[1, 2, 3]]))  # type: ignore[operator]
    assert seen == [("eager", False)]


def test_a_pass_that_fails_leaves_the_model_as_it_was(all_layers: None, tiny: LanguageModel) -> None:
    with pytest.raises(RuntimeError), Kernels.choices(tiny)[0].used():
        raise RuntimeError("the pass failed")
    assert tiny.model.config._attn_implementation == "eager"  # type: ignore[union-attr]
    assert not any("forward" in vars(module) for module in tiny.model.modules())


def test_a_model_whose_attention_has_more_than_a_mask_keeps_it(tiny: LanguageModel, tmp_path: Path) -> None:
    """Gemma 2 may cap its scores, which the fused kernel cannot."""
    settings = {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}
    lm = loaded(random_model("gemma2", **settings), tiny, tmp_path)
    assert not verification.verify_decoding(lm).kernels._configs


def test_a_wrong_kernel_is_not_taken(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mask(query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
        return F.scaled_dot_product_attention(query, key, value, **others)

    monkeypatch.setattr(
        kernels_module, "F", type("F", (), {"scaled_dot_product_attention": staticmethod(without_mask)})
    )
    assert not verification.verify_decoding(tiny).kernels._configs
