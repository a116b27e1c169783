"""Small models of many kinds with random weights, as transformers makes them from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from regrad.models.config import ModelConfig, SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model

_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_GPT_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4}
_TOKENS = {"vocab_size": 2236, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def random_model(kind: str, **settings: Any) -> PreTrainedModel:
    """A model of two layers, or as its `settings` say."""
    sizes = {"gpt2": _GPT_SIZES, "gptj": _GPT_SIZES}.get(kind, _SIZES | {"num_hidden_layers": 2})
    known = {**_TOKENS, **sizes, "initializer_range": 0.2}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**known, **settings}))  # type: ignore[no-any-return]


def random_gemma3(**text: Any) -> PreTrainedModel:
    """One that also sees: four layers of text, the third with full attention, beside a vision tower of eight."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    text = (
        _SIZES
        | _TOKENS
        | {"num_hidden_layers": 4, "head_dim": 8, "initializer_range": 0.2, "layer_types": kinds}
        | text
    )
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}
    )
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-any-return]


def loaded(
    model: PreTrainedModel,
    tokenizer_of: LanguageModel,
    folder: Path,
    projections: tuple[str, ...] = ("q_proj", "v_proj"),
) -> LanguageModel:
    """The model with another's tokenizer, through a directory, its updates on projections of the upper half."""
    model.save_pretrained(str(folder))
    tokenizer_of.tokenizer.save_pretrained(str(folder))
    subspace = SubspaceConfig(rank=2, projections=projections)
    config = ModelConfig(path=str(folder), prompts=tokenizer_of.config.prompts, subspace=subspace)
    return load_language_model(config, "cpu")
