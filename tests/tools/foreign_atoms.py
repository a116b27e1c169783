"""Files of atoms as other tools write them, and what an import has made of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from regrad.bank.format import QUARANTINE, current_version, read_table
from regrad.bank.reader import BankReader
from regrad.storage import Storage
from tests.tools.banks import SUBSPACE

PEFT_NAME = "base_model.model.{}.lora_{}.weight"


def quarantine(uri: str) -> dict[str, str]:
    file = BankReader(uri).manifest.quarantine
    rows = read_table(Storage(uri), file, QUARANTINE).to_pylist() if file else []
    return {row["passage_id"]: row["reason"] for row in rows}


def no_bank(path: Path) -> bool:
    return current_version(Storage(str(path))) is None


def peft(atom_P: Tensor) -> dict[str, Tensor]:
    """An atom under the names of PEFT."""
    return {PEFT_NAME.format(*name.rsplit(".", 1)): t.clone() for name, t in SUBSPACE.unflatten(atom_P).items()}


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


PRAG = {"r": 2, "lora_alpha": 32, "target_modules": ["down_proj", "gate_proj", "up_proj"], "task_type": "CAUSAL_LM"}
BASE = "meta-llama/Llama-3.2-1B-Instruct"


def write_adapter(folder: Path, seed: int, pickled: bool = False, **settings: Any) -> dict[str, Tensor]:
    """One adapter of a tiny Llama as PEFT saves it; its tensors by `<module>.A` and `.B`."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=8, num_key_value_heads=2, **shape))
    base.name_or_path = BASE
    model = get_peft_model(base, LoraConfig(**(PRAG | settings)))
    tensors = {}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape))
                module, factor = name.removeprefix("base_model.model.").split(".lora_")
                tensors[f"{module}.{factor[0]}"] = value.detach().clone()
    model.save_pretrained(folder, safe_serialization=not pickled, save_embedding_layers=False)
    return tensors
