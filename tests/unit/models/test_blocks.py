"""Sharing the frozen lower blocks, and the model's own logits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, GraniteConfig, GraniteForCausalLM, LlamaForCausalLM

from regrad.errors import ModelError
from regrad.models.architectures import LIKE_LLAMA
from regrad.models.batching import TokenBatch, row_chunks, share_lower_blocks
from regrad.models.config import ModelConfig, SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model
from tests.tools.refusals import refused

IDS = torch.tensor([[1, 5, 9, 7, 11], [1, 8, 6, 4, 2]])


def test_the_lower_blocks_run_once_and_later_passes_give_the_same(tiny: LanguageModel) -> None:
    runs = []
    handles = [b.mlp.register_forward_hook(lambda *_: runs.append(1)) for b in tiny.blocks.lower]  # type: ignore[union-attr]
    expected = tiny.hidden(IDS)
    assert len(runs) == 2
    entered = tiny.blocks.enter(IDS)
    assert len(runs) == 4
    for _ in range(3):
        torch.testing.assert_close(tiny.hidden(IDS, entered), expected, rtol=0, atol=0)
    assert len(runs) == 4
    for handle in handles:
        handle.remove()
    assert not any("forward" in vars(block) for block in tiny.blocks.lower)
    torch.testing.assert_close(tiny.hidden(IDS), expected, rtol=0, atol=0)


def test_nothing_is_shared_when_the_first_block_is_adapted(tiny_path: Path) -> None:
    config = ModelConfig(path=str(tiny_path), subspace=SubspaceConfig(rank=2, layers=(0, 3)))
    lm = load_language_model(config, "cpu")
    assert lm.blocks.enter(IDS) is None
    batch = TokenBatch(IDS, torch.ones_like(IDS, dtype=torch.bool))
    assert share_lower_blocks(lm, batch, 4) is batch


def test_a_shared_batch_can_be_cut_into_rows(tiny: LanguageModel) -> None:
    predicted = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0]], dtype=torch.bool)
    batch = share_lower_blocks(tiny, TokenBatch(IDS, predicted), 1)
    short = batch.take(torch.tensor([1]))
    assert short.ids.tolist() == [[1, 8, 6]]
    assert short.entered is not None
    torch.testing.assert_close(
        tiny.hidden(short.ids[:, :-1], short.entered), tiny.hidden(short.ids[:, :-1]), rtol=1e-5, atol=1e-5
    )


def test_chunks_hold_every_row_once_and_keep_to_the_limit() -> None:
    predicted = torch.zeros(6, 9, dtype=torch.bool)
    for row, length in enumerate((9, 2, 5, 2, 9, 4)):
        predicted[row, 1:length] = True
    batch = TokenBatch(torch.zeros(6, 9, dtype=torch.long), predicted)
    groups = row_chunks(batch, 10)
    assert sorted(row for group in groups for row in group.tolist()) == list(range(6))
    assert all(len(g) == 1 or int(batch.lengths[g].max()) * len(g) <= 10 for g in groups)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(GraniteForCausalLM, GraniteConfig(logits_scaling=8.0)), (GemmaForCausalLM, GemmaConfig(head_dim=8))],
    ids=["Granite divides its logits", "Gemma scales its embeddings"],
)
def test_models_that_scale_things_give_their_own_logits(
    tmp_path: Path, tiny_path: Path, kind: type, settings: object
) -> None:
    values = {"vocab_size": 2300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    values |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    for name, value in values.items():
        setattr(settings, name, value)
    torch.manual_seed(0)
    kind(settings).save_pretrained(str(tmp_path))
    load_language_model(ModelConfig(path=str(tiny_path)), "cpu").tokenizer.save_pretrained(str(tmp_path))
    lm = load_language_model(ModelConfig(path=str(tmp_path)), "cpu")
    own = lm.model(input_ids=IDS, use_cache=False).logits  # type: ignore[operator]
    torch.testing.assert_close(lm.logits(lm.hidden(IDS, lm.blocks.enter(IDS))), own, rtol=1e-4, atol=1e-5)


def test_soft_capped_and_multiplied_logits() -> None:
    scores = torch.tensor([1.0, 50.0])
    (cap,) = LIKE_LLAMA.logit_steps(SimpleNamespace(final_logit_softcapping=30.0))
    torch.testing.assert_close(cap(scores), 30 * torch.tanh(scores / 30))
    (halve,) = LIKE_LLAMA.logit_steps(SimpleNamespace(logit_scale=0.5))
    torch.testing.assert_close(halve(scores), scores / 2)
    assert LIKE_LLAMA.logit_steps(SimpleNamespace()) == ()


def test_a_model_whose_logits_we_do_not_understand_is_refused(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LlamaForCausalLM.forward

    def odd(self: LlamaForCausalLM, *args: object, **kwargs: object) -> object:
        output = original(self, *args, **kwargs)  # type: ignore[arg-type]
        output.logits = output.logits * 3 + 1
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", odd)
    with refused(ModelError, "unknown_logits", model="LlamaForCausalLM"):
        load_language_model(ModelConfig(path=str(tiny_path)), "cpu")
