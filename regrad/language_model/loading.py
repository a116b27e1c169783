"""Loading a base language model: Hugging Face format, from a directory, a hub name or an installed package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from regrad.config import ModelConfig
from regrad.errors import ModelError
from regrad.language_model.lora import BatchedLora
from regrad.language_model.subspace import Subspace, find_subspace
from regrad.storage import local_directory

_PACKAGE = "package:"


@dataclass
class LanguageModel:
    """A frozen causal language model in evaluation mode, its tokenizer, and the slots for updates.

    `config` is what it was loaded with, its data type resolved: a MetaInit made from it loads alike anywhere.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    lora: BatchedLora
    config: ModelConfig

    @property
    def subspace(self) -> Subspace:
        """The adaptation subspace of this model."""
        return self.lora.subspace

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def hidden(self, ids_NT: Tensor) -> Tensor:
        """Final hidden states [N, T, D] of right-padded token ids (no position attends to what follows it)."""
        output = self.model.base_model(input_ids=ids_NT, use_cache=False)  # type: ignore[operator]
        return output.last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of hidden states [..., D], in float32 at least."""
        scores: Tensor = self.model.get_output_embeddings()(hidden)  # type: ignore[operator]
        return scores if scores.dtype == torch.float64 else scores.float()

    def identity(self) -> str:
        """SHA-256 (hex) of every weight's name, shape and bytes as they are in memory now."""
        return weights_digest(self.model)

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text, without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @property
    def bos(self) -> list[int]:
        """The token that starts every sequence, if the model has one."""
        return [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]

    @property
    def eos(self) -> list[int]:
        """The token that ends every passage and answer, if the model has one."""
        return [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]

    @property
    def pad_id(self) -> int:
        """The id that fills the shorter rows of a batch."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else (self.eos or [0])[0]


def load_language_model(config: ModelConfig, device: str | torch.device | None = None) -> LanguageModel:
    """Load, freeze and hook the model; raises `ModelError` if it is not there or lacks the subspace.

    `device` defaults to the first GPU if there is one; `dtype: auto` is bfloat16 there and float32 on a CPU.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = _dtype(config, device)
    path = resolve_path(config.path)
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=config.attention, trust_remote_code=False, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"no language model could be loaded from {config.path}: {reason}") from error
    model.generation_config = GenerationConfig()  # greedy means greedy, whatever the model's own file suggests
    model.requires_grad_(False).eval().to(device)
    resolved = config.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    return LanguageModel(model, tokenizer, BatchedLora(model, find_subspace(model, config.subspace)), resolved)


def resolve_path(path: str) -> str:
    """`package:NAME/PATH` and directory URIs become local paths; anything else is left as a hub name."""
    if path.startswith(_PACKAGE):
        name, _, inner = path.removeprefix(_PACKAGE).partition("/")
        try:
            return str(Path(str(files(name))) / inner)
        except ModuleNotFoundError as error:
            raise ModelError(f"{path}: the package {name} is not installed") from error
    return str(local_directory(path)) if "://" in path else path


def weights_digest(model: nn.Module) -> str:
    """SHA-256 (hex) over all parameters, sorted by name: name, dtype, shape, bytes."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}|{parameter.dtype}|{tuple(parameter.shape)}|".encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
