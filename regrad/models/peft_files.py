"""How a vector of the subspace is written as a standard PEFT adapter, and read back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import Tensor

from regrad.models.config import ModelConfig
from regrad.models.subspace import Subspace

if TYPE_CHECKING:
    from peft import LoraConfig


_WEIGHTS = "adapter_model.safetensors"


def save_adapter(folder: Path, model: ModelConfig, subspace: Subspace, flat_P: Tensor) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; raises `SafetensorError` or `OSError`."""
    tensors = subspace.unflatten(flat_P.detach().cpu().float())
    save_file({_key(name): tensor.contiguous() for name, tensor in tensors.items()}, folder / _WEIGHTS)
    _config(model, subspace).save_pretrained(str(folder))


def load_adapter(folder: Path, subspace: Subspace) -> Tensor:
    """What `save_adapter` wrote [P]; raises `KeyError`, `ModelError`, `SafetensorError` or `OSError` for another."""
    tensors = load_file(folder / _WEIGHTS)
    return subspace.flatten({name: tensors[_key(name)] for name in subspace.shapes})


def _key(name: str) -> str:
    module, factor = name.rsplit(".", 1)
    return f"base_model.model.{module}.lora_{factor}.weight"


def _config(model: ModelConfig, subspace: Subspace) -> LoraConfig:
    from peft import LoraConfig  # brings every model of transformers with it: seconds, in each process of a cluster

    return LoraConfig(
        r=model.subspace.rank,
        lora_alpha=model.subspace.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=[name for name, _, _ in subspace.modules],
        base_model_name_or_path=model.path,
        inference_mode=True,
    )
