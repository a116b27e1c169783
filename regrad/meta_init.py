"""MetaInit: the artefact that meta-training makes and everything else needs.

On disk a standard PEFT adapter directory (`adapter_config.json`, `adapter_model.safetensors`) plus
`step_sizes.safetensors` and a card, `meta_init.json`. Its fingerprint is a hash of content: base weights,
subspace, phi0, step sizes and the text that atoms are taken of, with an end token or without. If any of these
changes, every atom is void.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regrad.digests import SHORT, json_bytes, pieces_digest
from regrad.errors import BankError, MetaInitError, ModelError
from regrad.models.config import ActsOn, ModelConfig
from regrad.models.subspace import Subspace, load_adapter, save_adapter
from regrad.storage import Storage, directory_writer, local_directory

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

CARD = "meta_init.json"
_STEP_SIZES = "step_sizes.safetensors"
_FORMAT = 1
_REMEDY = "copy it again, or train it again with `regrad train`"


@dataclass(frozen=True)
class MetaInit:
    """phi0 [P] and step sizes, one a tensor [n_tensors] or one a number [P], bound to a base model and a subspace.

    `step_size_mode` says how they were learned, `inner_steps` how many inner steps they were learned for, `acts_on` on
    which tokens their updates act (see `Update`). `base_identity` is the base's weights digest; `notes` is whatever the
    maker records (data, steps, losses).
    """

    model: ModelConfig
    base_identity: str
    subspace: Subspace
    phi0: Tensor
    step_sizes: Tensor
    inner_reduction: str = "mean"
    notes: Mapping[str, Any] = field(default_factory=dict)
    step_size_mode: str = "tie"
    inner_steps: int = 1
    acts_on: ActsOn = "everything"

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of SHA-256 over everything that atoms and updates depend on."""
        prompts = self.model.prompts
        head = {
            "base": self.base_identity,
            "subspace": self.subspace.to_json(),
            "atom_text": [prompts.passage, prompts.atom],
            "inner_reduction": self.inner_reduction,
            **({} if prompts.end_token else {"end_token": False}),
            **({"inner_steps": self.inner_steps} if self.inner_steps > 1 else {}),
            **({} if self.acts_on == "everything" else {"acts_on": self.acts_on}),
        }
        tensors = (self.phi0, self.step_sizes)
        numbers = (tensor.detach().cpu().float().contiguous().numpy().tobytes() for tensor in tensors)
        return pieces_digest([json_bytes(head), *numbers])[:SHORT]

    def model_at(self, path: str | None) -> ModelConfig:
        """The base model's settings, with `path`, if given, as the place of its weights."""
        return self.model if path is None else self.model.model_copy(update={"path": path})

    @cached_property
    def alpha_P(self) -> Tensor:
        """The step size of each number of phi0, float32."""
        return self.subspace.per_tensor(self.step_sizes).float()

    def update(self, gradient_sum_P: Tensor, gamma: float = 1.0) -> Tensor:
        """phi0 - gamma * alpha * (sum of atoms), [P] float32 (paper, eq. 3; gamma is used at inference only).

        Raises `BankError` for a sum of another size.
        """
        if gradient_sum_P.shape != self.phi0.shape:
            expected, found = self.phi0.numel(), gradient_sum_P.numel()
            raise BankError(
                f"expected a sum of {expected} numbers, as the MetaInit has, found {found}: the bank belongs to "
                "another MetaInit",
                code="wrong_size",
                expected=expected,
                found=found,
            )
        return torch.addcmul(self.phi0, self.alpha_P, gradient_sum_P.to(self.phi0), value=-gamma)

    def check_base(self, lm: LanguageModel) -> None:
        """Raise `MetaInitError` unless `lm` has the weights and the subspace that this MetaInit was made with."""
        if lm.subspace != self.subspace:
            raise MetaInitError("the MetaInit's subspace is not the language model's", code="other_subspace")
        if (found := lm.identity()) != self.base_identity:
            raise MetaInitError(
                f"the MetaInit belongs to base weights {self.base_identity[:16]} but the model loaded from "
                f"{lm.config.path} has {found[:16]} (in the same data type?); give the right `model_path`",
                code="other_base",
                found=found,
                expected=self.base_identity,
            )

    def save(self, uri: str | Path) -> None:
        """Write the directory, whole or not at all; an existing MetaInit is replaced."""
        card = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "base_identity": self.base_identity,
            "inner_reduction": self.inner_reduction,
            "inner_steps": self.inner_steps,
            "acts_on": self.acts_on,
            "step_size_mode": self.step_size_mode,
            "subspace": self.subspace.to_json(),
            "model": self.model.model_dump(mode="json"),
            "notes": dict(self.notes),
        }
        try:
            with directory_writer(uri, CARD) as folder:
                save_adapter(folder, self.model.path, self.subspace, self.phi0)
                save_file({"step_sizes": self.step_sizes.detach().cpu().float().contiguous()}, folder / _STEP_SIZES)
                (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
        except SafetensorError as error:
            raise MetaInitError(
                f"the MetaInit cannot be written to {uri}: {error}", code="not_written", uri=str(uri)
            ) from error

    @staticmethod
    def load(uri: str | Path) -> MetaInit:
        """Read and verify; raises `MetaInitError` if something is missing, damaged or not what the card says."""
        card = read_card(uri)
        folder = local_directory(uri)
        try:
            subspace = Subspace.from_json(card["subspace"])
            phi0 = load_adapter(folder, subspace)
            step_sizes = load_file(folder / _STEP_SIZES)["step_sizes"]
            model = ModelConfig.model_validate(card["model"])
            loaded = MetaInit(
                model,
                card["base_identity"],
                subspace,
                phi0,
                step_sizes,
                card["inner_reduction"],
                card["notes"],
                card["step_size_mode"],
                card.get("inner_steps", 1),
                _acts_on(card),
            )
        except (OSError, KeyError, SafetensorError, ValueError, ModelError, TypeError) as error:
            raise MetaInitError(
                f"the MetaInit at {uri} is damaged: {type(error).__name__}: {error}; {_REMEDY}",
                code="damaged",
                uri=str(uri),
            ) from error
        fits = step_sizes.shape in {(len(subspace.shapes),), (subspace.size,)}
        if not fits or not bool(torch.isfinite(step_sizes).all()):
            raise MetaInitError(
                f"the MetaInit at {uri} is damaged: its step sizes do not fit its subspace; {_REMEDY}",
                code="damaged",
                uri=str(uri),
            )
        if loaded.fingerprint != card["fingerprint"]:
            raise MetaInitError(
                f"the MetaInit at {uri} says fingerprint {card['fingerprint']} but its content is "
                f"{loaded.fingerprint}; {_REMEDY}",
                code="other_fingerprint",
                found=loaded.fingerprint,
                expected=card["fingerprint"],
            )
        return loaded


def read_card(uri: str | Path) -> dict[str, Any]:
    """The card alone (a few KB); raises `MetaInitError` if it is missing or not a MetaInit's."""
    storage = Storage(uri)
    if not storage.exists(CARD):
        raise MetaInitError(
            f"there is no MetaInit at {uri}: {CARD} is missing; make one with `regrad train`",
            code="not_found",
            uri=str(uri),
        )
    try:
        card = json.loads(storage.read(CARD))
    except ValueError as error:
        raise MetaInitError(f"{uri}/{CARD} is not JSON; {_REMEDY}", code="bad_card", uri=str(uri)) from error
    if not isinstance(card, dict) or card.get("format") != _FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise MetaInitError(
            f"{uri}/{CARD} has format {found!r:.40}, and this version of regrad reads format {_FORMAT}: train it again "
            "with `regrad train`, or use the version that made it",
            code="other_format",
            uri=str(uri),
            expected=_FORMAT,
            found=found,
        )
    if not isinstance(card.get("fingerprint"), str):
        raise MetaInitError(f"{uri}/{CARD} has no fingerprint; {_REMEDY}", code="bad_card", uri=str(uri))
    return card


def _acts_on(card: Mapping[str, Any]) -> ActsOn:
    """On which tokens updates act, by a card; raises `ValueError` for a word that regrad does not know."""
    found = card.get("acts_on", "everything")  # older cards do not say it
    if found not in get_args(ActsOn):
        raise ValueError(f"acts_on is one of {', '.join(get_args(ActsOn))}, found {found!r:.40}")
    return found  # type: ignore[no-any-return]


def random_meta_init(lm: LanguageModel, step_size: float, seed: int = 0) -> MetaInit:
    """An untrained MetaInit: standard LoRA start and one fixed step size. The paper's baseline `raw gradients`."""
    step_sizes = torch.full((len(lm.subspace.shapes),), step_size)
    return MetaInit(lm.config, lm.identity(), lm.subspace, lm.subspace.initial(seed), step_sizes, notes={"raw": True})
