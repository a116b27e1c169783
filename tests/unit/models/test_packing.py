"""Packed rows: what sequences begin with is read once, and every number is that of rows of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaModel

from regrad.models.batching import TokenBatch, losses_and_grads, row_chunks, sequence_losses, share_lower_blocks
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.packing import Begun, common_beginning, group_batch, packed_batch, packing_pays, row_length
from tests.tools.random_models import loaded, random_model

PASSAGE = list(range(20, 44))
GROUPS: list[list[Begun]] = [
    [([*PASSAGE, 50, 51, 52, 53], 26), ([*PASSAGE, 60, 61, 62], 26), ([*PASSAGE, 70, 71, 72, 73, 74], 27)],
    [(list(range(80, 110)), 25), ([*range(80, 100), 7, 8, 9], 22)],
    [([5, 6, 7, 8], 2)],
]


def rows_of_their_own(lm: LanguageModel, groups: Sequence[Sequence[Begun]]) -> TokenBatch:
    return packed_batch(lm, [[one] for group in groups for one in group])


def losses_and_gradient(lm: LanguageModel, batch: TokenBatch, reduction: str, answer: bool) -> tuple[Tensor, Tensor]:
    """Losses [S], and the gradient of their sum, each with its own weight, at a LoRA in which nothing is zero."""
    generator = torch.Generator().manual_seed(2)
    phi = (0.2 * torch.randn(lm.subspace.size, generator=generator)).to(lm.compute_dtype).requires_grad_()
    with lm.lora.applied(phi, batch.acted_on("answer" if answer else "everything")):
        losses = sequence_losses(lm, batch, reduction)
        (gradient,) = torch.autograd.grad((losses * torch.arange(1, len(losses) + 1)).sum(), phi)
    return losses.detach(), gradient


@pytest.mark.parametrize("answer", [False, True], ids=["acts on everything", "acts on the answer"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_and_gradients_are_those_of_separate_rows(tiny64: LanguageModel, reduction: str, answer: bool) -> None:
    expected = losses_and_gradient(tiny64, rows_of_their_own(tiny64, GROUPS), reduction, answer)
    packed = packed_batch(tiny64, GROUPS)
    assert (packed.ids.shape, packed.sequences) == ((3, 24 + 4 + 3 + 5), 6)
    found = losses_and_gradient(tiny64, packed, reduction, answer)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    shared = losses_and_gradient(tiny64, share_lower_blocks(tiny64, packed, 40), reduction, answer)
    torch.testing.assert_close(shared, expected, rtol=1e-10, atol=1e-12)


def test_the_gradient_at_the_hidden_states_is_that_of_separate_rows(tiny64: LanguageModel) -> None:
    found = []
    for batch in (packed_batch(tiny64, GROUPS), rows_of_their_own(tiny64, GROUPS)):
        hidden = tiny64.hidden(batch.ids[:, :-1], **batch.inputs(tiny64))
        losses, grads = losses_and_grads(tiny64, hidden, batch)
        found.append((losses, hidden[batch.predicted[:, 1:]], grads[batch.predicted[:, 1:]]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_some_of_the_rows_give_their_own_losses(tiny64: LanguageModel) -> None:
    whole = share_lower_blocks(tiny64, packed_batch(tiny64, GROUPS), 10**6)
    losses = sequence_losses(tiny64, whole)
    found = torch.zeros_like(losses)
    for rows in row_chunks(whole, 40):
        part = whole.take(rows)
        assert part.ids.shape[1] == max(row_length(GROUPS[row]) for row in rows.tolist())
        numbers = [n for row in rows.tolist() for n in ((0, 1, 2), (3, 4), (5,))[row]]
        found[numbers] = sequence_losses(tiny64, part)
    torch.testing.assert_close(found, losses, rtol=1e-10, atol=1e-12)


def test_tokens_are_counted_as_in_separate_rows(tiny: LanguageModel) -> None:
    assert packed_batch(tiny, GROUPS).tokens == rows_of_their_own(tiny, GROUPS).tokens
    assert packed_batch(tiny, GROUPS).take(torch.tensor([1])).tokens == 30 + 23


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=8), st.integers(0, 3)), min_size=1))
def test_nothing_in_the_common_beginning_is_predicted_and_every_rest_begins_with_a_given_token(
    drawn: list[tuple[list[int], int]],
) -> None:
    group = [(prompt + [9] * answer, len(prompt)) for prompt, answer in drawn]
    common = common_beginning(group)
    first = group[0][0]
    assert all(ids[:common] == first[:common] for ids, _ in group)
    assert all(common < start for _, start in group)
    longer = [common + 1 < start and ids[: common + 1] == first[: common + 1] for ids, start in group]
    assert not all(longer), "it is the longest"


def test_rows_are_packed_where_that_saves_enough(tiny: LanguageModel) -> None:
    assert tiny.packs
    assert group_batch(tiny, GROUPS[:1]).ids.shape == (1, 36)
    assert group_batch(tiny, GROUPS).ids.shape == (3, 36), "108 tokens for 180"
    begin_otherwise: list[Begun] = [([row, *PASSAGE], 20) for row in range(3)]
    assert group_batch(tiny, [begin_otherwise]).ids.shape == (3, 25)
    assert not packing_pays(tiny, [[one] for one in GROUPS[0]]), "there is nothing to pack"
    too_many: list[Begun] = [([*PASSAGE, *range(100 + row, 120 + row)], 30) for row in range(12)]
    assert row_length(too_many) > 256, "the model's context"
    assert group_batch(tiny, [too_many]).ids.shape == (12, 44)
    tiny.packs = False
    assert group_batch(tiny, GROUPS[:1]).ids.shape == (3, 29)


def test_sequences_beyond_the_window_have_rows_of_their_own(tiny: LanguageModel, tmp_path: Path) -> None:
    lm = loaded(random_model("mistral", sliding_window=28), tiny, tmp_path)
    assert lm.packs
    assert packing_pays(lm, [[([*PASSAGE, 50 + row, 51, 52], 26) for row in range(4)]])
    assert not packing_pays(lm, [[([*PASSAGE, 50 + row, 51, 52, 53, 54], 26) for row in range(4)]])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_is_right_with_either_attention(tiny: LanguageModel, attention: str) -> None:
    """In float32."""
    lm = load_language_model(tiny.config.model_copy(update={"attention": attention}), "cpu")
    assert lm.packs
    expected = losses_and_gradient(lm, rows_of_their_own(lm, GROUPS), "mean", False)
    torch.testing.assert_close(
        losses_and_gradient(lm, packed_batch(lm, GROUPS), "mean", False), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask"])
def test_a_model_that_does_not_read_packed_rows_rightly_has_rows_of_their_own(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    original = LlamaModel.forward

    def forward(self: LlamaModel, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop(ignored, None)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    lm = load_language_model(tiny.config, "cpu")
    assert not lm.packs
    assert group_batch(lm, GROUPS).ids.shape[0] == 6


def test_a_model_that_takes_no_such_mask_is_loaded_all_the_same(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = LlamaModel.forward

    def forward(self: LlamaModel, input_ids: Tensor, use_cache: bool = True, **kwargs: Any) -> Any:
        if kwargs.get("attention_mask") is not None:
            raise ValueError("no masks")
        return original(self, input_ids=input_ids, use_cache=use_cache, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with caplog.at_level("INFO", "regrad.models.packing"):
        assert not load_language_model(tiny.config, "cpu").packs
    assert "row of its own: no masks" in caplog.text
    assert LlamaForCausalLM.__name__ in caplog.text
