"""A trained translator as an artefact: a directory with a card and the network's tensors, for one base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regrad.bank.io.prag import Frame, adapter_fingerprint
from regrad.data.passages import Passage
from regrad.errors import MethodError
from regrad.models.config import ModelConfig
from regrad.models.subspace import Subspace
from regrad.training.cards import CardKind, digest_of
from regrad.training.lora.examples import Example
from regrad.training.predictor.contexts import states_of
from regrad.training.translator.config import PerceptronsConfig
from regrad.training.translator.network import TranslatorNetwork

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

CARD = "translator.json"
TRANSLATOR_CARD = CardKind("translator", CARD, "regrad translator", ("digest", "base_identity", "bank"))
_TENSORS = "translator.safetensors"


def state_of(lm: LanguageModel, passage: Passage, max_tokens: int) -> Tensor:
    """The final hidden state [D] in float32 at a passage's last token, or at token `max_tokens` of a longer one.

    Raises `ModelError` if it is not finite, and `TokenOutOfVocabulary`.
    """
    # Without the end token: a state after it would be what the model makes of a new text's beginning.
    ids = [*lm.bos, *lm.encode(lm.config.prompts.atom_text(passage))][: lm.within(max_tokens)]
    return states_of(lm, [[Example(tuple(ids))]], {})[0]


@dataclass(frozen=True)
class Translator:
    """A network that generates a passage's LoRA, and what it was trained for.

    `bank` is the fingerprint of the adapters that it imitates. `scaled`: whether its LoRAs acted with alpha / rank
    while it was trained. `notes` is what the training records.
    """

    model: ModelConfig
    base_identity: str
    bank: str
    scaled: bool
    max_tokens: int
    config: PerceptronsConfig
    network: TranslatorNetwork
    states: int
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subspace(self) -> Subspace:
        """That of the adapters."""
        return self.network.subspace

    @property
    def digest(self) -> str:
        """The first 16 hex digits of SHA-256 over what it is for, and its numbers."""
        head = {"base": self.base_identity, "bank": self.bank, "scaled": self.scaled, "max_tokens": self.max_tokens}
        head |= {"states": self.states, "network": self.config.model_dump(mode="json")}
        return digest_of(head | {"subspace": self.subspace.to_json()}, self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """All numbers, on the CPU in float32."""
        return {name: value.detach().cpu().float().contiguous() for name, value in self.network.state_dict().items()}

    def check_base(self, lm: LanguageModel) -> None:
        """Raise `MethodError` unless `lm` has the weights whose states this was trained on."""
        if (found := lm.identity()) != self.base_identity:
            raise MethodError(
                f"the translator was trained for base weights {self.base_identity[:16]}, but is used with "
                f"{found[:16]}; train one for this model with `regrad translator`",
                code="translator_of_another_base",
                expected=self.base_identity[:16],
                found=found[:16],
            )

    def check_adapters(self, subspace: Subspace) -> None:
        """Raise `MethodError` unless its LoRAs are of the rank, the scale and the projections of these adapters."""
        if subspace != self.subspace:
            ours, theirs = (
                f"rank {one.rank}, scale {one.scaling:g} and {len(one.modules)} projections"
                for one in (self.subspace, subspace)
            )
            raise MethodError(
                f"the translator generates LoRAs of {ours}, but the adapters are of {theirs}, or of other projections; "
                "train one for these with `regrad translator`, without start_from",
                code="translator_of_other_adapters",
                expected=self.subspace.rank,
                found=subspace.rank,
            )

    @torch.no_grad()
    def lora_of(self, lm: LanguageModel, passage: Passage) -> Tensor:
        """A passage's LoRA [P] in float32 on the CPU; raises as `state_of`."""
        # A passage at a time, so that its numbers do not depend on which others are asked for.
        lora_1P: Tensor = self.network.to(lm.device)(state_of(lm, passage, self.max_tokens)[None])
        return lora_1P[0].float().cpu()

    def save(self, uri: str | Path) -> None:
        """Write the directory, whole or not at all; an existing translator of ours is replaced."""
        card = {
            "kind": "dyprag",
            "digest": self.digest,
            "base_identity": self.base_identity,
            "bank": self.bank,
            "scaled": self.scaled,
            "max_tokens": self.max_tokens,
            "states": self.states,
            "network": self.config.model_dump(mode="json"),
            "subspace": self.subspace.to_json(),
            "model": self.model.model_dump(mode="json"),
            "notes": dict(self.notes),
        }
        TRANSLATOR_CARD.write(uri, card, lambda folder: save_file(self.tensors(), folder / _TENSORS))

    @staticmethod
    def load(uri: str | Path) -> Translator:
        """Read and verify; raises `MethodError` if something is missing, damaged or not what the card says."""
        with TRANSLATOR_CARD.opened(uri) as (card, folder):
            tensors = load_file(folder / _TENSORS)
            subspace, config = Subspace.from_json(card["subspace"]), PerceptronsConfig.model_validate(card["network"])
            network = TranslatorNetwork(int(card["states"]), subspace, config)
            network.load_state_dict(tensors)
            loaded = Translator(
                ModelConfig.model_validate(card["model"]),
                card["base_identity"],
                card["bank"],
                bool(card["scaled"]),
                int(card["max_tokens"]),
                config,
                network.requires_grad_(False).eval(),
                int(card["states"]),
                card["notes"],
            )
            sound = loaded.digest == card["digest"]
        # An imported bank may name its base by a path instead of the weights' digest.
        bases = (loaded.base_identity, loaded.model.path)
        known = loaded.bank in {adapter_fingerprint(Frame(base, subspace)) for base in bases}
        TRANSLATOR_CARD.check_content(uri, sound and known, tensors.values())
        return loaded
