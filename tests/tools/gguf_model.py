"""A small Llama as a GGUF file, quantised as published ones are."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    file: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, architecture: str = "llama"
) -> None:
    """Matrices in Q8_0, norms in float32; the tokenizer as byte-level BPE."""
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    for name, weights in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = _permuted(name, weights, config.num_attention_heads, config.num_key_value_heads).float().numpy()
        if values.ndim == 1:
            writer.add_tensor(_name(name), values)
        else:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(_name(name), quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    tokens = [tokenizer.convert_ids_to_tokens(i) or f"<unused{i}>" for i in range(size)]
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in special else 1 for i in range(size)])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(int(tokenizer.bos_token_id))  # type: ignore[arg-type]
    writer.add_eos_token_id(int(tokenizer.eos_token_id))  # type: ignore[arg-type]


def _name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if name == "lm_head.weight":
        return "output.weight"
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _permuted(name: str, weights: Tensor, heads: int, kv_heads: int) -> Tensor:
    """llama.cpp keeps the two halves of each head's rotation interleaved."""
    count = heads if "q_proj" in name else kv_heads if "k_proj" in name else 0
    if not count:
        return weights
    shaped = weights.reshape(count, 2, weights.shape[0] // count // 2, *weights.shape[1:])
    return torch.swapaxes(shaped, 1, 2).reshape(weights.shape)
