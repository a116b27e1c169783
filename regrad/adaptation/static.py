"""One LoRA for all questions, on disk: a standard PEFT adapter directory and a card, `adapter.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from regrad.config import FinetuneConfig, ModelConfig
from regrad.errors import MethodError, ModelError
from regrad.language_model.loading import LanguageModel
from regrad.language_model.peft_files import load_adapter, save_adapter
from regrad.language_model.subspace import Subspace
from regrad.storage import Storage, directory_writer, local_directory

CARD = "adapter.json"
_FORMAT = 1


@dataclass(frozen=True)
class StaticLora:
    """A LoRA [P] with the base that it belongs to; `notes` is whatever the maker records (objective, data, losses)."""

    model: ModelConfig
    base_identity: str
    subspace: Subspace
    values: Tensor
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The first 16 hex digits of SHA-256 over base, subspace and numbers."""
        head = json.dumps({"base": self.base_identity, "subspace": self.subspace.to_json()}, sort_keys=True)
        numbers = self.values.detach().cpu().float().contiguous().numpy().tobytes()
        return hashlib.sha256(head.encode() + numbers).hexdigest()[:16]

    def check_base(self, lm: LanguageModel) -> None:
        """Raise `MethodError` unless `lm` has the weights that this LoRA was trained on."""
        if (found := lm.identity()) != self.base_identity:
            raise MethodError(
                f"the adapter belongs to base weights {self.base_identity[:16]} but the model loaded from "
                f"{lm.config.path} has {found[:16]}; train one for this model with `regrad finetune`"
            )

    def check_subspace(self, lm: LanguageModel) -> None:
        """Raise `MethodError` unless its numbers are of the LoRA that `lm` has."""
        if lm.subspace != self.subspace:
            raise MethodError(
                f"the adapter has other tensors than the LoRA of the model's settings ({len(self.values)} numbers "
                f"against {lm.subspace.size}): set model.subspace as it was when the adapter was trained"
            )

    def save(self, uri: str | Path) -> None:
        """Write the directory, whole or not at all; an existing adapter of ours is replaced."""
        card = {
            "format": _FORMAT,
            "digest": self.digest,
            "base_identity": self.base_identity,
            "subspace": self.subspace.to_json(),
            "model": self.model.model_dump(mode="json"),
            "notes": dict(self.notes),
        }
        with directory_writer(uri, CARD) as folder:
            save_adapter(folder, self.model, self.subspace, self.values)
            (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")

    @staticmethod
    def load(uri: str | Path) -> StaticLora:
        """Read and verify; raises `MethodError` if something is missing, damaged or not what the card says."""
        card = read_adapter_card(uri)
        try:
            subspace = Subspace.from_json(card["subspace"])
            values = load_adapter(local_directory(uri), subspace)
            model = ModelConfig.model_validate(card["model"])
            loaded = StaticLora(model, card["base_identity"], subspace, values, card["notes"])
        except (OSError, KeyError, SafetensorError, ValueError, ModelError, TypeError) as error:
            raise MethodError(f"the adapter at {uri} is damaged: {type(error).__name__}: {error}") from error
        if loaded.digest != card["digest"] or not bool(torch.isfinite(values).all()):
            raise MethodError(f"the adapter at {uri} is damaged: its content is not what its card says")
        return loaded


def parent_of(config: FinetuneConfig) -> StaticLora | None:
    """The adapter that a run goes on from, if its settings name one; raises as `StaticLora.load`."""
    return StaticLora.load(config.start_from) if config.start_from else None


def read_adapter_card(uri: str | Path) -> dict[str, Any]:
    """The card alone (a few KB); raises `MethodError` if there is none or it is not one of ours."""
    storage = Storage(uri)
    if not storage.exists(CARD):
        raise MethodError(f"there is no adapter at {uri}: {CARD} is missing; make one with `regrad finetune`")
    try:
        card = json.loads(storage.read(CARD))
    except ValueError as error:
        raise MethodError(f"{uri}/{CARD} is not JSON") from error
    known = isinstance(card, dict) and card.get("format") == _FORMAT
    if not known or not all(isinstance(card.get(name), str) for name in ("digest", "base_identity")):
        raise MethodError(f"{uri}/{CARD} is not an adapter's card of format {_FORMAT}")
    found: dict[str, Any] = card
    return found
