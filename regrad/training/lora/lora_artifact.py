"""A trained LoRA as an artefact: files, card and cost; and what several of them do together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from regrad.digests import SHORT, json_bytes, pieces_digest
from regrad.errors import MethodError
from regrad.models.config import ModelConfig
from regrad.models.subspace import Subspace, load_adapter, save_adapter
from regrad.training.cards import CardKind

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


def join(parts: Sequence[tuple[Subspace, Tensor]], weights: Sequence[float] | None = None) -> dict[Subspace, Tensor]:
    """What `parts` (LoRAs [..., p]) do together, each product times its weight: a vector [..., P] in each subspace.

    LoRAs of the same modules and scale stand side by side in the rank of one subspace; others keep their own.
    Differentiable.
    """
    alike: dict[tuple[Any, float], list[tuple[int, dict[str, Tensor]]]] = {}
    for (subspace, flat), weight in zip(parts, weights or [1.0] * len(parts), strict=True):
        tensors = subspace.unflatten(flat)
        if weight != 1:
            tensors = {name: weight * value if name.endswith(".B") else value for name, value in tensors.items()}
        alike.setdefault((subspace.modules, subspace.scaling), []).append((subspace.rank, tensors))
    joined = {}
    for (modules, scaling), loras in alike.items():
        subspace = Subspace(modules, sum(rank for rank, _ in loras), scaling)
        # [A1; A2] and [B1, B2] side by side in the rank: their product is B1 A1 + B2 A2.
        lead = max((next(iter(tensors.values())).shape[:-2] for _, tensors in loras), key=len)
        joined[subspace] = subspace.flatten(
            {
                name: torch.cat(
                    [tensors[name].expand(*lead, -1, -1) for _, tensors in loras], dim=-2 if name.endswith(".A") else -1
                )
                for name in subspace.shapes
            }
        )
    return joined


CARD = "adapter.json"
ADAPTER_CARD = CardKind("adapter", CARD, "regrad finetune", ("digest", "base_identity"))


@dataclass(frozen=True)
class StaticLora:
    """A LoRA [P] with the base that it belongs to; `notes` is what its training records (objective, data, losses)."""

    KIND: ClassVar = ADAPTER_CARD

    model: ModelConfig
    base_identity: str
    subspace: Subspace
    values: Tensor
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The first 16 hex digits of SHA-256 over base, subspace and numbers."""
        head = json_bytes({"base": self.base_identity, "subspace": self.subspace.to_json()})
        return pieces_digest([head, self.values.detach().cpu().float().contiguous().numpy().tobytes()])[:SHORT]

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
            "digest": self.digest,
            "base_identity": self.base_identity,
            "subspace": self.subspace.to_json(),
            "model": self.model.model_dump(mode="json"),
            "notes": dict(self.notes),
        }
        ADAPTER_CARD.write(uri, card, lambda folder: save_adapter(folder, self.model.path, self.subspace, self.values))

    @staticmethod
    def load(uri: str | Path) -> StaticLora:
        """Read and verify; raises `MethodError` if something is missing, damaged or not what the card says."""
        with ADAPTER_CARD.opened(uri) as (card, folder):
            subspace = Subspace.from_json(card["subspace"])
            values = load_adapter(folder, subspace)
            model = ModelConfig.model_validate(card["model"])
            loaded = StaticLora(model, card["base_identity"], subspace, values, card["notes"])
        ADAPTER_CARD.check_content(uri, loaded.digest == card["digest"], [values])
        return loaded


_ON_PASSAGES = ("passages", "instruction")


@dataclass(frozen=True)
class CorpusCosts:
    """Training time of all workers in milliseconds (None if unknown) and float32 bytes, for one passage."""

    preparation_ms: float | None
    storage_bytes: float


def corpus_costs(
    uri: str | Path,
    kind: CardKind = ADAPTER_CARD,
    numbers: Callable[[Mapping[str, Any]], int] = lambda card: Subspace.from_json(card["subspace"]).size,
) -> CorpusCosts | None:
    """The costs of the adapter at `uri`; None if it was trained on questions, which costs nothing for any passage.

    Without those of the adapter that it continued. Of another `kind` of what `regrad finetune` makes, `numbers` says by
    its card how many there are. Raises `MethodError` if the card is damaged.
    """
    card = kind.read(uri)
    try:
        notes, size = card["notes"], numbers(card)
        if notes.get("objective") not in _ON_PASSAGES:
            return None
        passages, seconds = int(notes["examples"]), notes.get("seconds")
        return CorpusCosts(None if seconds is None else 1e3 * float(seconds) / passages, 4.0 * size / passages)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise kind.damaged(uri, f"{type(error).__name__}: {error}") from error
