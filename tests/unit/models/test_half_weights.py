"""The bf16 copies of frozen weights; nothing is multiplied with them here, which may end the process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regrad.models.half_weights import HalfWeights, autocast
from regrad.models.loading import LanguageModel


def linears(tiny: LanguageModel) -> dict[str, nn.Linear]:
    return {name: module for name, module in tiny.model.named_modules() if isinstance(module, nn.Linear)}


def test_inside_the_block_linear_weights_are_what_autocast_makes_of_them_and_others_are_as_before(
    tiny: LanguageModel,
) -> None:
    before = {name: module.weight for name, module in linears(tiny).items()}
    identity = tiny.identity()
    with autocast(tiny, True):
        assert all(
            torch.equal(module.weight, before[name].to(torch.bfloat16)) for name, module in linears(tiny).items()
        )
        assert tiny.model.get_input_embeddings().weight.dtype == torch.float32  # type: ignore[operator]
        assert tiny.compute_dtype == torch.bfloat16
    assert all(module.weight is before[name] for name, module in linears(tiny).items())
    assert tiny.identity() == identity


def test_the_copies_are_made_once_and_anew_when_a_weight_was_written(tiny: LanguageModel) -> None:
    head = tiny.model.get_output_embeddings()  # type: ignore[operator]
    with autocast(tiny, True):
        first = head.weight
    with autocast(tiny, True):
        assert head.weight is first
    with torch.no_grad():
        head.weight.add_(1)
    with autocast(tiny, True):
        assert torch.equal(head.weight, tiny.half_weights._copies[head][1])
        assert float((head.weight.float() - first.float()).mean()) == pytest.approx(1, abs=0.05)


def test_an_error_inside_the_block_leaves_the_weights_as_they_were(tiny: LanguageModel) -> None:
    with pytest.raises(KeyError), autocast(tiny, True):
        raise KeyError
    assert {module.weight.dtype for module in linears(tiny).values()} == {torch.float32}


def test_weights_that_are_trained_or_in_another_precision_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double(), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    with HalfWeights(model).applied():
        assert [module.weight.dtype for module in model] == [torch.float32, torch.float64, torch.bfloat16]


def test_in_the_models_own_precision_nothing_is_copied(tiny: LanguageModel) -> None:
    with autocast(tiny, False):
        assert tiny.compute_dtype == torch.float32
    assert not tiny.half_weights._copies
