"""Models that no row of the table of families covers: taken if they are right in every check, else refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaMLP

from regrad.data.passages import Passage
from regrad.errors import ModelError, PromptTooLong
from regrad.gradients.extractor import AtomExtractor
from regrad.inference import verification
from regrad.inference.decoding import GenerationRequest
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.meta_init import random_meta_init
from regrad.models.architectures import ARCHITECTURES, LIKE_LLAMA
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from tests.tools.decoded import PROMPTS, Heard, run, update
from tests.tools.random_models import loaded, random_model
from tests.tools.reference_decoding import reference_generate
from tests.tools.refusals import refused

STATES = {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16}
SHARED = {
    "head_dim": 8,
    "vocab_size_per_layer_input": 2236,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "laurel_rank": 4,
    "activation_sparsity_pattern": [0.0, 0.0],
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 12,
}


@pytest.fixture
def no_rows() -> Iterator[None]:
    """As if the table were empty."""
    rows = dict(ARCHITECTURES)
    ARCHITECTURES.clear()
    yield
    ARCHITECTURES.update(rows)


def test_a_model_like_llama_of_an_unknown_kind_is_taken(tiny: LanguageModel, tmp_path: Path) -> None:
    lm = loaded(random_model("olmo2"), tiny, tmp_path)
    assert lm.architecture is LIKE_LLAMA
    check_answers(lm)


def check_answers(lm: LanguageModel) -> None:
    """The engine answers as transformers' own decoding does."""
    requests = [DecodingRequest(prompt, update(lm, 1), 8) for prompt in PROMPTS]
    expected = [reference_generate(lm, [GenerationRequest(r.prompt, r.updates, 8)])[0].text for r in requests]
    assert [heard.text for heard in run(Engine(lm), requests)] == expected


def test_a_model_without_keys_and_values_is_refused_when_it_is_loaded(
    no_rows: None, tiny: LanguageModel, tmp_path: Path
) -> None:
    model = random_model("mamba2", **STATES)
    with refused(ModelError, "unknown_layers", kinds=["linear_attention"]):
        loaded(model, tiny, tmp_path, ("in_proj",))


def test_the_engine_refuses_a_model_that_masks_its_tokens_in_another_way(tiny: LanguageModel, tmp_path: Path) -> None:
    """StableLM has no window; this one's configuration seems to say that it has."""
    lm = loaded(random_model("stablelm"), tiny, tmp_path)
    Engine(lm)
    verification._VERIFIED.pop(lm.model, None)
    lm.text_config.sliding_window = 100
    with refused(ModelError, "decoded_wrongly", model="StableLmForCausalLM"):
        Engine(lm)
    assert lm.text_config.sliding_window == 100


def test_the_engine_refuses_a_model_that_keeps_more_than_keys_and_values(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here each token reads something of the one before it, which the engine does not keep from piece to piece."""
    original = LlamaMLP.forward

    def mixing(self: LlamaMLP, x_NTD: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(x_NTD[:, :1]), x_NTD[:, :-1]], 1)
        return original(self, x_NTD + before)

    monkeypatch.setattr(LlamaMLP, "forward", mixing)
    with refused(ModelError, "decoded_wrongly", model="LlamaForCausalLM"):
        Engine(tiny)


def test_a_model_is_verified_once(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    Engine(tiny)
    monkeypatch.setattr(verification, "_compare", lambda lm: pytest.fail("verified again"))
    Engine(tiny)


def test_a_projection_that_the_model_does_not_call_is_refused(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def direct(self: LlamaMLP, x_NTD: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x_NTD)) * (x_NTD @ self.up_proj.weight.T))  # type: ignore[no-any-return]

    monkeypatch.setattr(LlamaMLP, "forward", direct)
    with refused(ModelError, "tokens_not_read_once", module="model.layers.2.mlp.up_proj"):
        load_language_model(ModelConfig(path=str(tiny_path)), "cpu")


def test_blocks_that_hand_on_something_else_are_not_shared(tiny: LanguageModel, tmp_path: Path) -> None:
    """Gemma 3n's hidden states have one more dimension, before that of the rows."""
    lm = loaded(random_model("gemma3n_text", **SHARED), tiny, tmp_path)
    assert lm.blocks.enter(torch.tensor([[1, 2, 3]])) is None


def test_a_passage_has_its_atom_beside_a_much_longer_one(tiny: LanguageModel, tmp_path: Path) -> None:
    """The model has zeros for the tokenizer's padding, and Gemma 3n a root in each layer without a derivative there."""
    layers = {"layer_types": ["sliding_attention"] * 2}
    lm = loaded(random_model("gemma3n_text", **SHARED | layers), tiny, tmp_path)
    assert not lm.model.get_input_embeddings().weight[tiny.tokenizer.pad_token_id].any()  # type: ignore[operator]
    passages = [Passage("a", "", "Les."), Passage("b", "", "Les Dripen was born in Lairton. " * 20)]
    meta_init = random_meta_init(lm, 0.01)
    together = AtomExtractor(lm, meta_init, 10**6).extract(passages)
    alone = AtomExtractor(lm, meta_init, 1).extract(passages)
    for found, expected in zip(together, alone, strict=True):
        assert found.atom is not None and expected.atom is not None, found.problem
        torch.testing.assert_close(found.atom, expected.atom, rtol=1e-3, atol=1e-6)


def test_layers_that_share_keys_and_values_answer_as_transformers(tiny: LanguageModel, tmp_path: Path) -> None:
    """The upper layers of Gemma 4 read what lower ones kept, so that training may not leave the lower ones out."""
    kinds = ["sliding_attention", "full_attention"] * 2
    sizes = {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 2236}
    layers = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": kinds, "sliding_window": 12}
    lm = loaded(random_model("gemma4_text", **sizes, **layers), tiny, tmp_path, ("q_proj",))
    assert lm.blocks.enter(torch.tensor([[1, 2, 3]])) is None
    check_answers(lm)


def test_a_model_that_gives_no_keys_and_values_is_refused(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LlamaForCausalLM.forward

    def forgetful(self: LlamaForCausalLM, *args: object, **kwargs: object) -> object:
        output = original(self, *args, **kwargs)  # type: ignore[arg-type]
        output.past_key_values = None
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", forgetful)
    with refused(ModelError, "other_states", model="LlamaForCausalLM"):
        load_language_model(ModelConfig(path=str(tiny_path)), "cpu")


def test_weights_that_are_not_numbers_are_named_as_such(tiny_path: Path, tiny: LanguageModel, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_path)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight")[0, 0] = torch.nan
    with refused(ModelError, "not_finite"):
        loaded(model, tiny, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_longrope_is_used_up_to_where_its_factors_change(kind: str, tiny: LanguageModel, tmp_path: Path) -> None:
    """Beyond it the longest row of a batch chooses the factors of all, and answers depended on their neighbours."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [8.0] * 4,
        "original_max_position_embeddings": 64,
    }
    sizes = {"max_position_embeddings": 512, "original_max_position_embeddings": 64, "rope_parameters": rope}
    lm = loaded(random_model(kind, **sizes), tiny, tmp_path, ("down_proj",))
    assert lm.context_length == 64
    with refused(PromptTooLong, context=64):
        Engine(lm).submit(DecodingRequest("word " * 60), Heard())


def test_doge_is_used_up_to_where_its_mask_depends_on_the_batch(tiny: LanguageModel, tmp_path: Path) -> None:
    lm = loaded(random_model("doge", max_position_embeddings=256, keep_window_size=16), tiny, tmp_path, ("down_proj",))
    assert lm.context_length == 16
    with refused(PromptTooLong, context=16):
        Engine(lm).submit(DecodingRequest("word " * 20), Heard())


def test_a_mixture_says_which_of_its_experts_are_adapted(
    tiny: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the default projections, which in this kind only the shared expert has as modules."""
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    with caplog.at_level("INFO", "regrad.models.loading"):
        loaded(random_model("qwen2_moe", **sizes, shared_expert_intermediate_size=16), tiny, tmp_path, ("up_proj",))
    assert "model.layers.1.mlp.shared_expert.up_proj" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "regrad.models.loading"):
        loaded(random_model("qwen3_moe", **sizes, head_dim=8), tiny, tmp_path / "other", ("q_proj",))
    assert "mixture" not in caplog.text
