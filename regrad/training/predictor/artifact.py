"""A trained predictor as an artefact: a directory with a card and the network's tensors, for one base and one W0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regrad.errors import MethodError
from regrad.models.config import ModelConfig
from regrad.models.subspace import Subspace
from regrad.training.cards import CardKind, digest_of
from regrad.training.lora.lora_artifact import StaticLora, join
from regrad.training.predictor.config import ContextConfig, NetworkConfig, PredictorObjective, UpdateSpace
from regrad.training.predictor.contexts import Context, states_of
from regrad.training.predictor.network import UpdateNetwork

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

CARD = "predictor.json"
PREDICTOR_CARD = CardKind("predictor", CARD, "regrad predictor", ("digest", "base_identity", "adapter"))
_TENSORS = "predictor.safetensors"
_CONSTANT = "constant"


@dataclass(frozen=True)
class UpdatePredictor:
    """A network that predicts updates of W0, the adapter of the digest `adapter`, and what it was trained for.

    `constant` [P] is the mean of the updates in training, in the numbers of a LoRA such as W0: a control that knows no
    context. Of objective `steps` these are the steps on the contexts, of `answers` what was predicted. `notes` is what
    the training records.
    """

    model: ModelConfig
    base_identity: str
    adapter: str
    space: UpdateSpace
    context: ContextConfig
    config: NetworkConfig
    network: UpdateNetwork
    states: int
    constant: Tensor
    notes: Mapping[str, Any] = field(default_factory=dict)
    objective: PredictorObjective = "steps"

    def tensors(self) -> dict[str, Tensor]:
        """All numbers, on the CPU in float32."""
        found = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return {name: value.detach().cpu().float().contiguous() for name, value in found.items()} | {
            _CONSTANT: self.constant.detach().cpu().float().contiguous()
        }

    @property
    def digest(self) -> str:
        """The first 16 hex digits of SHA-256 over what it is for, and its numbers."""
        head = {"base": self.base_identity, "adapter": self.adapter, "space": self.space, "states": self.states}
        head |= {"context": self.context.model_dump(mode="json"), "network": self.config.model_dump(mode="json")}
        head |= {} if self.objective == "steps" else {"objective": self.objective}
        return digest_of(head | {"subspace": self.network.subspace.to_json()}, self.tensors())

    def check_belongs(self, lm: LanguageModel, adapter: StaticLora) -> None:
        """Raise `MethodError` unless this was trained for this base model and this W0."""
        check_belongs(self.base_identity, self.adapter, lm.identity(), adapter.digest)

    @torch.no_grad()
    def predict(self, lm: LanguageModel, adapter: StaticLora, contexts: list[Context]) -> Tensor:
        """The updates of these contexts [U, P] on the CPU; raises `ModelError` as `states_of`."""
        states_UD = states_of(lm, contexts, {adapter.subspace: adapter.values.to(lm.device)})
        updates_UP: Tensor = self.network.to(lm.device)(states_UD)
        return updates_UP.float().cpu()

    def save(self, uri: str | Path) -> None:
        """Write the directory, whole or not at all; an existing predictor of ours is replaced."""
        card = {
            "kind": "rag-gd",
            "digest": self.digest,
            "base_identity": self.base_identity,
            "adapter": self.adapter,
            "space": self.space,
            "objective": self.objective,
            "states": self.states,
            "context": self.context.model_dump(mode="json"),
            "network": self.config.model_dump(mode="json"),
            "subspace": self.network.subspace.to_json(),
            "model": self.model.model_dump(mode="json"),
            "notes": dict(self.notes),
        }
        PREDICTOR_CARD.write(uri, card, lambda folder: save_file(self.tensors(), folder / _TENSORS))

    @staticmethod
    def load(uri: str | Path) -> UpdatePredictor:
        """Read and verify; raises `MethodError` if something is missing, damaged or not what the card says."""
        with PREDICTOR_CARD.opened(uri) as (card, folder):
            tensors = load_file(folder / _TENSORS)
            constant = tensors.pop(_CONSTANT)
            subspace, config = Subspace.from_json(card["subspace"]), NetworkConfig.model_validate(card["network"])
            network = UpdateNetwork(int(card["states"]), subspace, config)
            network.load_state_dict({name.removeprefix("network."): value for name, value in tensors.items()})
            loaded = UpdatePredictor(
                ModelConfig.model_validate(card["model"]),
                card["base_identity"],
                card["adapter"],
                card["space"],
                ContextConfig.model_validate(card["context"]),
                config,
                network.requires_grad_(False).eval(),
                int(card["states"]),
                constant,
                card["notes"],
                objective_of(card),
            )
            sound = loaded.digest == card["digest"] and constant.shape == (subspace.size,)
        PREDICTOR_CARD.check_content(uri, sound, loaded.tensors().values())
        return loaded


def objective_of(card: Mapping[str, Any]) -> PredictorObjective:
    """What a predictor was trained for, by its card; raises `ValueError` for a word that regrad does not know."""
    found = card.get("objective", "steps")  # older cards do not say it
    if found not in get_args(PredictorObjective):
        raise ValueError(f"objective is one of {', '.join(get_args(PredictorObjective))}, found {found!r:.40}")
    return found  # type: ignore[no-any-return]


def check_belongs(base: str, adapter: str, found_base: str, found_adapter: str) -> None:
    """Raise `MethodError` unless a predictor for this base and adapter is used with these."""
    for what, expected, found in (("base weights", base, found_base), ("an adapter W0", adapter, found_adapter)):
        if expected != found:
            raise MethodError(
                f"the predictor was trained for {what} {expected[:16]}, but is used with {found[:16]}; train one for "
                "these with `regrad predictor`",
                code="predictor_of_another_base" if what == "base weights" else "predictor_of_another_adapter",
                expected=expected[:16],
                found=found[:16],
            )


def added(adapter: StaticLora, update_P: Tensor, space: UpdateSpace, gamma: float = 1.0) -> tuple[Subspace, Tensor]:
    """W0 with `gamma` times an update, as one LoRA.

    The paper does not say how the two are merged. Inferred: an update of the factors is a step from W0, so their
    numbers are added; one of products is added as a product, exactly, in a subspace of twice the rank.
    """
    if space == "factors":
        return adapter.subspace, adapter.values + gamma * update_P
    ((subspace, vector),) = join(
        [(adapter.subspace, adapter.values), (adapter.subspace, update_P)], [1.0, gamma]
    ).items()
    return subspace, vector
