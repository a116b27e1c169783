"""A trained LoRA as an artefact: files, card and cost; and joining several of them in the rank."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from regrad.errors import MethodError, ModelError
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace, load_adapter, save_adapter
from regrad.storage import Storage, directory_writer, local_directory
from regrad.training.lora.config import FinetuneConfig


def check_ranks(ranks: Sequence[int], rank: int) -> None:
    """Raise `MethodError` if LoRAs of these ranks do not fit side by side into one of `rank`."""
    if sum(ranks) > rank:
        raise MethodError(
            f"LoRAs of ranks {list(ranks)} need {sum(ranks)} together, and the model's subspace has rank {rank}; "
            "set model.subspace.rank (and alpha in proportion) higher, or ask with fewer passages",
            code="rank_too_low",
            ranks=list(ranks),
            rank=rank,
        )


def check_joins(parts: Sequence[Subspace], target: Subspace) -> None:
    """Raise `MethodError` if LoRAs of these subspaces do not fit side by side into `target`."""
    check_ranks([part.rank for part in parts], target.rank)
    known = set(target.modules)
    for part in parts:
        foreign = [name for name, *shape in part.modules if (name, *shape) not in known]
        if foreign:
            raise MethodError(
                f"a LoRA adapts {foreign[0]}, which is not in the model's subspace in this size; "
                "set model.subspace.layers and projections so that it is",
                code="outside_subspace",
                module=foreign[0],
            )


def join(parts: Sequence[tuple[Subspace, Tensor]], target: Subspace, weights: Sequence[float] | None = None) -> Tensor:
    """The LoRA [..., P] of `target` that does what all `parts` ([..., p] each) do together; differentiable.

    Raises `MethodError` if they do not fit.
    """
    # [A1; A2] and [w1 B1, w2 B2] side by side in the rank: their product is w1 B1 A1 + w2 B2 A2. The model applies the
    # target's scale, so each B also carries the ratio of its own scale to that; what is left of the rank is zero.
    check_joins([subspace for subspace, _ in parts], target)
    lead = max((flat.shape[:-1] for _, flat in parts), key=len)
    weighted = zip(parts, weights or [1.0] * len(parts), strict=True)
    named = [(w * subspace.scaling / target.scaling, subspace.unflatten(flat)) for (subspace, flat), w in weighted]
    like = parts[-1][1]
    joined: dict[str, Tensor] = {}
    for name, inputs, outputs in target.modules:
        here = [(factor, tensors) for factor, tensors in named if f"{name}.A" in tensors]
        a = [tensors[f"{name}.A"].expand(*lead, -1, inputs) for _, tensors in here]
        b = [(factor * tensors[f"{name}.B"]).expand(*lead, outputs, -1) for factor, tensors in here]
        free = target.rank - sum(part.shape[-2] for part in a)
        joined[f"{name}.A"] = torch.cat([*a, like.new_zeros(*lead, free, inputs)], dim=-2)
        joined[f"{name}.B"] = torch.cat([*b, like.new_zeros(*lead, outputs, free)], dim=-1)
    return target.flatten(joined)


CARD = "adapter.json"
_FORMAT = 1


@dataclass(frozen=True)
class StaticLora:
    """A LoRA [P] with the base that it belongs to; `notes` is what its training records (objective, data, losses)."""

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
                f"{lm.config.path} has {found[:16]}; train one for this model with `regrad finetune`",
                code="adapter_of_another_base",
                expected=found[:16],
                found=self.base_identity[:16],
            )

    def check_subspace(self, lm: LanguageModel) -> None:
        """Raise `MethodError` unless this LoRA is in the subspace of `lm`."""
        if lm.subspace != self.subspace:
            raise MethodError(
                f"the adapter has other tensors than the LoRA of the model's settings ({len(self.values)} numbers "
                f"against {lm.subspace.size}): set model.subspace as it was when the adapter was trained",
                code="adapter_of_another_subspace",
                expected=lm.subspace.size,
                found=len(self.values),
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
            save_adapter(folder, self.model.path, self.subspace, self.values)
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
            raise MethodError(
                f"the adapter at {uri} is damaged: {type(error).__name__}: {error}",
                code="adapter_damaged",
                uri=str(uri),
            ) from error
        if loaded.digest != card["digest"] or not bool(torch.isfinite(values).all()):
            raise MethodError(
                f"the adapter at {uri} is damaged: its content is not what its card says",
                code="adapter_damaged",
                uri=str(uri),
            )
        return loaded


def parent_of(config: FinetuneConfig) -> StaticLora | None:
    """The adapter that a run continues, if its settings name one; raises as `StaticLora.load`."""
    return StaticLora.load(config.start_from) if config.start_from else None


def read_adapter_card(uri: str | Path) -> dict[str, Any]:
    """The card alone (a few KB); raises `MethodError` if there is none or it is not one of ours."""
    storage = Storage(uri)
    if not storage.exists(CARD):
        raise MethodError(
            f"there is no adapter at {uri}: {CARD} is missing; make one with `regrad finetune`",
            code="adapter_not_found",
            uri=str(uri),
        )
    try:
        card = json.loads(storage.read(CARD))
    except ValueError as error:
        raise MethodError(f"{uri}/{CARD} is not JSON", code="adapter_damaged", uri=str(uri)) from error
    known = isinstance(card, dict) and card.get("format") == _FORMAT
    if not known or not all(isinstance(card.get(name), str) for name in ("digest", "base_identity")):
        raise MethodError(
            f"{uri}/{CARD} is not an adapter's card of format {_FORMAT}", code="adapter_damaged", uri=str(uri)
        )
    found: dict[str, Any] = card
    return found


_ON_PASSAGES = ("passages", "instruction")


@dataclass(frozen=True)
class CorpusCosts:
    """Training time of all workers in milliseconds (None if unknown) and float32 bytes, for one passage."""

    preparation_ms: float | None
    storage_bytes: float


def corpus_costs(uri: str | Path) -> CorpusCosts | None:
    """The costs of the adapter at `uri`; None if it was trained on questions, which costs nothing for any passage.

    Without those of the adapter that it continued. Raises `MethodError` if the card is damaged.
    """
    card = read_adapter_card(uri)
    try:
        notes, size = card["notes"], Subspace.from_json(card["subspace"]).size
        if notes.get("objective") not in _ON_PASSAGES:
            return None
        passages, seconds = int(notes["examples"]), notes.get("seconds")
        return CorpusCosts(None if seconds is None else 1e3 * float(seconds) / passages, 4.0 * size / passages)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise MethodError(
            f"{uri}/{CARD} is damaged: {type(error).__name__}: {error}", code="adapter_damaged", uri=str(uri)
        ) from error
