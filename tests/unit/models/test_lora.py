"""Per-request LoRA against two independent ways: PEFT applied one by one, and `functional_call` with merged weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from regrad.meta_init import MetaInit
from regrad.models.loading import LanguageModel
from regrad.models.lora import BatchedLora
from regrad.models.subspace import Subspace


def merged_weights(lm: LanguageModel, flat: Tensor) -> dict[str, Tensor]:
    """The adapted projections' weights with scaling * B A added; GPT-2's `Conv1D` keeps its own transposed."""
    tensors, weights = lm.subspace.unflatten(flat), {}
    for name, _, _ in lm.subspace.modules:
        module, change = lm.model.get_submodule(name), lm.subspace.scaling * tensors[f"{name}.B"] @ tensors[f"{name}.A"]
        weights[f"{name}.weight"] = module.weight + (change.T if isinstance(module, Conv1D) else change)
    return weights


def batched_logits(lm: LanguageModel, ids: Tensor, updates: Tensor) -> Tensor:
    with torch.no_grad(), lm.lora.applied(updates):
        return lm.model(input_ids=ids).logits


def test_batched_updates_equal_peft_applied_one_by_one(
    tiny: LanguageModel, tiny_path: Path, meta_init: MetaInit, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    updates = meta_init.phi0 + 0.1 * torch.randn(4, tiny.subspace.size)
    ids = torch.randint(3, 900, (4, 11))
    together = batched_logits(tiny, ids, updates)
    for row in range(4):
        MetaInit(tiny.config, tiny.identity(), tiny.subspace, updates[row], meta_init.step_sizes).save(tmp_path / "a")
        peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_path), str(tmp_path / "a")).eval()
        with torch.no_grad():
            alone = peft(input_ids=ids[row : row + 1]).logits[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)
        assert (alone - tiny.model(input_ids=ids[row : row + 1]).logits[0]).abs().max() > 1e-2


def test_batched_updates_equal_functional_call_with_merged_weights(tiny: LanguageModel) -> None:
    torch.manual_seed(4)
    updates = 0.2 * torch.randn(3, tiny.subspace.size)
    ids = torch.randint(3, 900, (6, 9))
    together = batched_logits(tiny, ids, updates)
    for row in range(6):
        weights = merged_weights(tiny, updates[row // 2])
        with torch.no_grad():
            alone = functional_call(tiny.model, weights, kwargs={"input_ids": ids[row : row + 1]}).logits[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)


def test_one_shared_update_equals_the_same_update_in_every_row(tiny: LanguageModel) -> None:
    flat = 0.2 * torch.randn(tiny.subspace.size, generator=torch.Generator().manual_seed(5))
    ids = torch.randint(3, 900, (3, 7))
    rows = batched_logits(tiny, ids, flat.expand(3, -1))
    torch.testing.assert_close(batched_logits(tiny, ids, flat), rows, rtol=1e-5, atol=1e-5)


def test_outside_the_block_the_base_model_answers(tiny: LanguageModel) -> None:
    ids = torch.randint(3, 900, (2, 5))
    before = tiny.model(input_ids=ids).logits
    with tiny.lora.applied(torch.ones(tiny.subspace.size)):
        inside = tiny.model(input_ids=ids).logits
    assert not torch.allclose(inside, before)
    assert torch.equal(tiny.model(input_ids=ids).logits, before)


def test_an_error_inside_the_block_takes_the_update_off(tiny: LanguageModel) -> None:
    ids = torch.randint(3, 900, (1, 5))
    before = tiny.model(input_ids=ids).logits
    try:
        with tiny.lora.applied(torch.ones(tiny.subspace.size)):
            raise RuntimeError("interrupted")
    except RuntimeError:
        pass
    assert torch.equal(tiny.model(input_ids=ids).logits, before)


def test_weights_are_the_same_before_and_after(tiny: LanguageModel) -> None:
    before = tiny.identity()
    batched_logits(tiny, torch.randint(3, 900, (2, 5)), torch.randn(2, tiny.subspace.size))
    assert tiny.identity() == before
    with torch.no_grad():
        next(tiny.model.parameters())[0, 0] += 1e-6
    assert tiny.identity() != before


def by_hand(weight_OD: Tensor, x_NTD: Tensor, tensors: dict[str, Tensor], scaling: float, acting_NT: Tensor) -> Tensor:
    """W x, and + scaling * B A x where the update acts; token by token, with the row's A and B."""
    updates, rows = tensors["0.A"].shape[0], x_NTD.shape[0]
    found = []
    for row in range(rows):
        a, b = (tensors[name][row * updates // rows] for name in ("0.A", "0.B"))
        for token in range(x_NTD.shape[1]):
            x = x_NTD[row, token]
            found.append(weight_OD @ x + (scaling * b @ (a @ x) if acting_NT[row, token] else 0.0))
    return torch.stack(found).view(*x_NTD.shape[:2], -1)


@pytest.mark.parametrize("updates", [1, 2, 6])
@pytest.mark.parametrize("shared", [False, True], ids=["a row each", "one for all"])
def test_with_a_mask_an_update_acts_on_these_tokens_alone(updates: int, shared: bool) -> None:
    generator = torch.Generator().manual_seed(updates)
    model, subspace = torch.nn.Sequential(torch.nn.Linear(5, 3, bias=False)).double(), Subspace((("0", 5, 3),), 2, 0.5)
    x = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)
    flat = torch.randn(1 if shared else updates, subspace.size, generator=generator, dtype=torch.float64)
    acting = torch.rand(6, 4, generator=generator) < 0.5
    with torch.no_grad(), BatchedLora(model, subspace).applied(flat[0] if shared else flat, acting):
        found = model(x)
    with torch.no_grad():
        expected = by_hand(model[0].weight, x, subspace.unflatten(flat), 0.5, acting)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(found[~acting], model(x)[~acting]), "exactly the base's"


def test_the_gradients_of_a_masked_update_are_those_by_hand_and_can_be_differentiated_again() -> None:
    generator = torch.Generator().manual_seed(3)
    model, subspace = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False)).double(), Subspace((("0", 4, 3),), 2, 0.5)
    x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    acting = torch.tensor([[True, False, True], [False, False, True]])
    flat = torch.randn(2, subspace.size, generator=generator, dtype=torch.float64, requires_grad=True)
    lora = BatchedLora(model, subspace)

    def loss(values: Tensor) -> Tensor:
        with lora.applied(values, acting):
            return model(x).sin().sum()  # type: ignore[no-any-return]

    hand = by_hand(model[0].weight, x, subspace.unflatten(flat), 0.5, acting).sin().sum()
    (expected,) = torch.autograd.grad(hand, flat)
    (found,) = torch.autograd.grad(loss(flat), flat)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradgradcheck(loss, flat)


def test_a_masked_update_leaves_the_tokens_before_as_the_base_reads_them(tiny: LanguageModel) -> None:
    ids = torch.randint(3, 900, (4, 9), generator=torch.Generator().manual_seed(6))
    updates = torch.randn(2, tiny.subspace.size, generator=torch.Generator().manual_seed(7))
    acting = torch.arange(9) >= torch.tensor([[3], [8], [0], [9]])
    base = tiny.model(input_ids=ids).logits
    with torch.no_grad(), tiny.lora.applied(updates, acting):
        found = tiny.model(input_ids=ids).logits
        with tiny.lora.applied(updates):
            assert not torch.equal(tiny.model(input_ids=ids).logits[~acting], base[~acting])
        assert torch.equal(tiny.model(input_ids=ids).logits, found), "the mask is back"
    assert torch.equal(found[~acting], base[~acting])
    assert (found[acting] - base[acting]).abs().amax(-1).min() > 1e-2
    torch.testing.assert_close(found[2], batched_logits(tiny, ids[2:3], updates[1])[0], rtol=1e-5, atol=1e-5)
