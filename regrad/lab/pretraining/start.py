"""A structured start that makes reading emerge in two minutes rather than never.

Two heads of the first block begin as previous-token heads, the upper blocks begin as content matching
(W_k = W_q), and one embedding channel is constant so that position alone can drive attention.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from regrad.lab.tokenizer import BOS_ID, EOS_ID, PAD_ID

_FREQUENCIES = 4
_SHARPNESS = 1.05


def new_base(
    vocabulary: int, hidden: int, layers: int, heads: int, ffn: int, rope_theta: float = 1e5
) -> LlamaForCausalLM:
    """A freshly initialised tiny Llama with the structured start (seeded by torch's global generator)."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        initializer_range=0.08,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    _structure(model, hidden // heads, rope_theta)
    return model


@torch.no_grad()
def _structure(model: LlamaForCausalLM, head_dim: int, rope_theta: float) -> None:
    model.model.embed_tokens.weight[:, 0] = 0.5
    attention = model.model.layers[0].self_attn
    frequency = 1 / (rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim))[:_FREQUENCIES]
    for head, offset in ((0, 1), (1, 2)):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        query, key = torch.zeros(head_dim), torch.zeros(head_dim)
        query[:_FREQUENCIES] = _SHARPNESS
        key[:_FREQUENCIES] = _SHARPNESS * torch.cos(frequency * offset)
        key[head_dim // 2 : head_dim // 2 + _FREQUENCIES] = _SHARPNESS * torch.sin(frequency * offset)
        attention.q_proj.weight[rows] *= 0.25
        attention.k_proj.weight[rows] *= 0.25
        attention.q_proj.weight[rows, 0] = query
        attention.k_proj.weight[rows, 0] = key
    for layer in model.model.layers[2:]:
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
