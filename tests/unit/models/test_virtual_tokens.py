"""Virtual tokens are to a model what their embeddings are, in every family; and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regrad.errors import ModelError
from regrad.models.architectures import Architecture
from regrad.models.loading import LanguageModel
from regrad.models.virtual_tokens import VirtualTokens, virtual_tokens
from tests.tools.random_models import loaded
from tests.tools.refusals import refused
from tests.unit.models.test_architectures import LOADED, model


def drawn(lm: LanguageModel, count: int, seed: int = 0) -> Tensor:
    """Embeddings of about the size that those of words have."""
    weight = lm.model.get_input_embeddings().weight  # type: ignore[operator]
    drawn_ND = torch.randn(count, weight.shape[1], generator=torch.Generator().manual_seed(seed))
    return (drawn_ND * weight.std()).to(weight)


@torch.no_grad()
def by_embeddings(lm: LanguageModel, values_ND: Tensor, ids: list[int]) -> Tensor:
    """The model's own logits [T, V] of these embeddings and then the tokens."""
    embedded_1TD = lm.model.get_input_embeddings()(torch.tensor([ids]))  # type: ignore[operator]
    given_1TD = torch.cat([values_ND[None], embedded_1TD], 1)
    return lm.model(inputs_embeds=given_1TD, use_cache=False).logits[0]  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kind"), LOADED)
def test_a_family_reads_their_ids_as_it_reads_their_embeddings(
    row: Architecture, kind: str, tiny: LanguageModel, tmp_path: Path
) -> None:
    lm = loaded(model(kind), tiny, tmp_path, row.attention)
    before, values = lm.identity(), drawn(lm, 3)
    ids = [*virtual_tokens(lm).put(values), 7, 8, 9]
    with torch.no_grad():
        found = lm.logits(lm.hidden(torch.tensor([ids])))[0]
    torch.testing.assert_close(found, by_embeddings(lm, values, [7, 8, 9]).float(), rtol=1e-4, atol=1e-4)
    assert lm.identity() == before


@torch.no_grad()
def test_without_their_ids_every_number_stays_as_it_was(tiny: LanguageModel) -> None:
    ids = torch.randint(3, 900, (3, 9), generator=torch.Generator().manual_seed(0))
    before = tiny.hidden(ids)
    virtual_tokens(tiny).put(drawn(tiny, 2))
    assert torch.equal(tiny.hidden(ids), before)


def test_the_same_embeddings_have_the_same_ids_and_others_have_others(tiny: LanguageModel) -> None:
    tokens, values = virtual_tokens(tiny), drawn(tiny, 4)
    first, other = tokens.put(values), tokens.put(drawn(tiny, 4, 1))
    assert len({*first, *other}) == 8
    assert min(first) >= tiny.vocabulary_size
    assert virtual_tokens(tiny) is tokens
    assert tokens.put(values.clone()) == first


def test_those_of_some_ids_are_replaced_in_a_block_and_have_gradients(tiny64: LanguageModel) -> None:
    values, other = drawn(tiny64, 3), drawn(tiny64, 3, 1).requires_grad_()
    tokens = virtual_tokens(tiny64)
    ids = torch.tensor([[*tokens.put(values), 7, 8]])
    expected = tiny64.hidden(torch.tensor([[*tokens.put(other.detach()), 7, 8]]))
    with tokens.replaced(ids[0, :3].tolist(), other):
        found = tiny64.hidden(ids)
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found.square().sum(), other)
    step = torch.zeros_like(other)
    step[1, 2] = 1e-5
    with torch.no_grad(), tokens.replaced(ids[0, :3].tolist(), other + step):
        further = tiny64.hidden(ids).square().sum()
    assert float(further - found.detach().square().sum()) / 1e-5 == pytest.approx(float(gradient[1, 2]), rel=1e-3)
    assert torch.equal(tiny64.hidden(ids), tiny64.hidden(torch.tensor([[*tokens.put(values), 7, 8]])))


def test_embeddings_that_cannot_be_read_are_refused(tiny: LanguageModel) -> None:
    tokens = virtual_tokens(tiny)
    with refused(ModelError, "virtual_tokens_of_another_width", expected=32, found=[2, 31]):
        tokens.put(torch.zeros(2, 31))
    with refused(ModelError, "virtual_tokens_not_finite"):
        tokens.put(torch.full((2, 32), torch.nan))


@pytest.mark.parametrize("otherwise", ["virtual_tokens_read_otherwise", "no_virtual_tokens"])
def test_a_model_that_looks_at_ids_elsewhere_is_refused_and_left_as_it_was(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, otherwise: str
) -> None:
    read = VirtualTokens._read

    def wrongly(self: VirtualTokens, ids_NT: Tensor) -> Tensor:
        if int(ids_NT.max()) < tiny.vocabulary_size:
            return read(self, ids_NT)
        if otherwise == "no_virtual_tokens":
            raise IndexError("index out of range in self")
        return read(self, ids_NT.flip(1))

    monkeypatch.setattr(VirtualTokens, "_read", wrongly)
    embedding: Any = tiny.model.get_input_embeddings()  # type: ignore[operator]
    with refused(ModelError, otherwise):
        virtual_tokens(tiny)
    assert embedding(torch.tensor([[5]])).equal(embedding.weight[5][None, None])
    monkeypatch.undo()
    virtual_tokens(tiny)
