"""Model families: what regrad must know about a kind of model to adapt it and decode with it, as rows of a table.

`docs/models.md` shows the table; `tests/unit/models/test_architectures.py` runs a small random model of every row
through updates, atoms, decoding and a training step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from regrad.errors import ModelError
from regrad.registry import Registry

FULL, SLIDING = "full_attention", "sliding_attention"
_GATED = ("gate_proj", "up_proj", "down_proj")
_SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj")

_LOGITS: dict[str, Callable[[float, Tensor], Tensor]] = {
    "logits_scaling": lambda value, scores: scores / value,
    "logit_scale": lambda value, scores: scores * value,
    "final_logit_softcapping": lambda value, scores: value * torch.tanh(scores / value),
}
_FACTORS = {"logits_scaling", "logit_scale"}


@dataclass(frozen=True)
class Architecture:
    """One family. `model_types` are transformers' names for its (text) models.

    `blocks` is where the list of blocks is in the text decoder. `mlp` and `attention` are the projections of a block
    that see every token and can be adapted, by the names that `subspace.projections` takes; `linear` is their class
    (the weight of a `Conv1D` is transposed, its update is not). `logits` names the numbers of the model's configuration
    that change its logits, in the order in which they are applied. `layer_kinds` are the kinds of layers that it may
    have, by how far back they see. A family with `refused`, the reason, is not loaded.
    """

    family: str
    model_types: tuple[str, ...]
    blocks: str = "layers"
    mlp: tuple[str, ...] = _GATED
    attention: tuple[str, ...] = _SPLIT
    linear: type[nn.Module] = nn.Linear
    logits: tuple[str, ...] = ()
    layer_kinds: tuple[str, ...] = (FULL,)
    refused: str = ""

    def block_list(self, model: nn.Module) -> tuple[str, nn.Module]:
        """The path and the list of the blocks of the model's text decoder; raises `ModelError` if it is not there."""
        # Not the first list of blocks that is found: the towers of a multimodal model (vision, audio) have some, too.
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
        blocks = getattr(decoder, self.blocks, None)
        if isinstance(blocks, nn.ModuleList):
            return next(name for name, module in model.named_modules() if module is blocks), blocks
        lists = [(len(module), name) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        likely = max(lists)[1] if lists else None
        where = f"its blocks seem to be `{likely}`" if likely else "it has no list of blocks"
        expected = next(
            (f"{name}.{self.blocks}" for name, module in model.named_modules() if module is decoder), self.blocks
        )
        known = [row.family for row in ARCHITECTURES.values() if not row.refused]
        raise ModelError(
            f"regrad cannot adapt {type(model).__name__}: {where}, but in a model of an unknown family they must be "
            f"`{expected.lstrip('.')}`, as in Llama; choose a model of one of these families: {', '.join(known)}",
            code="unknown_layout",
            model=type(model).__name__,
            blocks=likely,
        )

    def logit_steps(self, config: Any) -> tuple[Callable[[Tensor], Tensor], ...]:
        """What the model does after its output embedding, step by step; most families do nothing.

        Granite divides, Cohere multiplies, Gemma soft-caps.
        """
        return tuple(partial(_LOGITS[name], value) for name, value in self._logit_values(config).items())

    def logit_factor(self, config: Any) -> float | None:
        """What these steps multiply with; None if they do more than that."""
        values = self._logit_values(config)
        if not values.keys() <= _FACTORS:
            return None
        factor = torch.ones((), dtype=torch.float64)
        for step in self.logit_steps(config):
            factor = step(factor)
        return float(factor)

    def _logit_values(self, config: Any) -> dict[str, float]:
        return {name: value for name in self.logits if (value := getattr(config, name, None)) is not None}

    def windows(self, config: Any) -> dict[str, int | None]:
        """For each kind of layer of this model, how many tokens back it sees; None: to the start.

        Raises `ModelError` for a kind that keeps something other than keys and values, or sees in another way.
        """
        window: int | None = getattr(config, "sliding_window", None) if SLIDING in self.layer_kinds else None
        # Older configurations name no kinds: all their layers are alike, and slide if there is a window.
        kinds = set(getattr(config, "layer_types", None) or [FULL if window is None else SLIDING])
        if unknown := sorted(kinds - set(self.layer_kinds)):
            raise ModelError(
                f"a {config.model_type} model has layers of kind {unknown}, which regrad cannot run; for "
                f"{self.family} it knows {list(self.layer_kinds)}; choose another model",
                code="unknown_layers",
                kinds=unknown,
            )
        return {kind: window if kind == SLIDING else None for kind in kinds}


ARCHITECTURES: Registry[Architecture] = Registry("model family", ModelError)
"""Every family by name."""

LIKE_LLAMA = Architecture("like Llama", (), logits=tuple(_LOGITS), layer_kinds=(FULL, SLIDING))
"""What a model of an unknown kind is assumed to be; loading it and making an engine for it check that."""

_NO_KEYS_AND_VALUES = (
    "keep a running state instead of each token's keys and values, and only those can be kept per request"
)

for _row in (
    Architecture("Llama", ("llama",)),
    Architecture("SmolLM 3", ("smollm3",), layer_kinds=(FULL, SLIDING)),
    Architecture("Mistral", ("mistral",), layer_kinds=(FULL, SLIDING)),
    Architecture("Qwen 2", ("qwen2",), layer_kinds=(FULL, SLIDING)),
    Architecture("Qwen 3", ("qwen3",), layer_kinds=(FULL, SLIDING)),
    Architecture("Gemma", ("gemma",)),
    Architecture("Gemma 2", ("gemma2",), logits=("final_logit_softcapping",), layer_kinds=(FULL, SLIDING)),
    Architecture(
        "Gemma 3", ("gemma3", "gemma3_text"), logits=("final_logit_softcapping",), layer_kinds=(FULL, SLIDING)
    ),
    Architecture(
        "Phi-3",
        ("phi3",),
        mlp=("gate_up_proj", "down_proj"),
        attention=("qkv_proj", "o_proj"),
        layer_kinds=(FULL, SLIDING),
    ),
    Architecture("Granite", ("granite",), logits=("logits_scaling",)),
    Architecture("Cohere", ("cohere", "cohere2"), logits=("logit_scale",), layer_kinds=(FULL, SLIDING)),
    Architecture(
        "GPT-2",
        ("gpt2",),
        blocks="h",
        mlp=("c_fc", "mlp.c_proj"),
        attention=("c_attn", "attn.c_proj"),
        linear=Conv1D,
    ),
    Architecture(
        "GPT-NeoX", ("gpt_neox",), mlp=("dense_h_to_4h", "dense_4h_to_h"), attention=("query_key_value", "dense")
    ),
    Architecture(
        "mixture of experts", ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"), mlp=(), layer_kinds=(FULL, SLIDING)
    ),
    Architecture("Mamba", ("mamba", "mamba2", "falcon_mamba"), refused=f"its layers {_NO_KEYS_AND_VALUES}"),
    Architecture("RWKV and xLSTM", ("rwkv", "xlstm"), refused=f"its layers {_NO_KEYS_AND_VALUES}"),
    Architecture(
        "hybrid of attention and state space",
        (
            "bamba",
            "falcon_h1",
            "granitemoehybrid",
            "jamba",
            "lfm2",
            "minimax",
            "nemotron_h",
            "qwen3_5",
            "qwen3_5_text",
            "qwen3_5_moe",
            "qwen3_5_moe_text",
            "qwen3_next",
            "recurrent_gemma",
            "zamba",
            "zamba2",
        ),
        refused=f"in models of this kind layers can {_NO_KEYS_AND_VALUES}",
    ),
    Architecture(
        "Llama 4",
        ("llama4", "llama4_text"),
        refused="its layers attend within chunks, and regrad has no masks for that",
    ),
    Architecture(
        "ALiBi",
        ("bloom", "falcon", "mpt"),
        refused="its attention reads distances from the mask of a single sequence, and requests that are decoded "
        "together have other masks",
    ),
):
    ARCHITECTURES[_row.family] = _row


def architecture_of(model: nn.Module) -> Architecture:
    """The family of a model, by its configuration; raises as `architecture_for`."""
    config: Any = getattr(model, "config", None)
    return architecture_for(config.get_text_config().model_type if config is not None else "")


def architecture_for(model_type: str) -> Architecture:
    """The family of a kind of (text) model; `LIKE_LLAMA` if there is no row for it.

    Raises `ModelError` for a family that is not supported.
    """
    found = next((row for row in ARCHITECTURES.values() if model_type in row.model_types), LIKE_LLAMA)
    if found.refused:
        raise ModelError(
            f"regrad cannot run a {model_type} model ({found.family}): {found.refused}; choose another model",
            code="unsupported_family",
            family=found.family,
            reason=found.refused,
        )
    return found


def context_length(config: Any) -> int | None:
    """Tokens that a sequence may have, by a model's configuration; None if it sets no limit."""
    # A sliding window is no limit: it bounds how far one layer sees, and through several layers the model sees further.
    config = config.get_text_config()
    # Doge's mask keeps the best keys of all that the batch has, as soon as those are more than its window.
    limits = [getattr(config, "max_position_embeddings", None), getattr(config, "keep_window_size", None)]
    # LongRoPE's first stage is one. Beyond it a model uses other factors for all rows of a batch as soon as one row is
    # that long, and what a row gives must not depend on the rows beside it.
    rope = getattr(config, "rope_parameters", None) or {}
    for each in (rope, *(inner for inner in rope.values() if isinstance(inner, dict))):  # one for each kind of layer
        if each.get("rope_type") == "longrope":
            limits.append(each.get("original_max_position_embeddings"))
            limits.append(getattr(config, "original_max_position_embeddings", None))
    return min((int(limit) for limit in limits if limit and limit > 0), default=None)
