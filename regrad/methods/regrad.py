"""ReGrad: the retrieved passages' gradients as a temporary update; with ICL, the passages in the prompt as well.

ReGrad Online computes the gradients when they are needed; the update is the same, up to the codec's error.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from regrad.atoms.merging import MERGES
from regrad.config import MethodConfig
from regrad.errors import FingerprintMismatch, MethodError
from regrad.language_model.loading import LanguageModel
from regrad.meta_init import MetaInit, read_card
from regrad.methods.banks import BankAtoms, Found, bank_manifest, check_scores, with_computed
from regrad.methods.base import Method
from regrad.methods.knowledge import Knowledge
from regrad.methods.updates import Asked, Made, Updates

REGRAD = Method(
    "regrad", "gradients applied, nothing in the prompt", passages_in_prompt=False, update="gradients", served=True
)
REGRAD_ICL = Method(
    "regrad+icl", "gradients applied, passages in the prompt", passages_in_prompt=True, update="gradients", served=True
)
REGRAD_ONLINE = Method(
    "regrad-online",
    "gradients computed now, nothing in the prompt",
    passages_in_prompt=False,
    update="gradients-now",
    served=True,
)


def check_gradients(config: MethodConfig, fetched: bool = True) -> None:
    """Raise `MethodError` for an unknown weighting, a MetaInit or bank that is not there, or of which one is another's.

    `MetaInitError` and `FingerprintMismatch` as reading them raises.
    """
    if config.weighting not in MERGES:
        near = difflib.get_close_matches(config.weighting, MERGES, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise MethodError(f"unknown weighting {config.weighting!r:.60}{hint} There are {', '.join(MERGES)}")
    fingerprint = str(read_card(_meta_init(config))["fingerprint"])
    if fetched:
        manifest = bank_manifest(config, "gradient")
        if manifest.fingerprint != fingerprint:
            raise FingerprintMismatch(manifest.fingerprint, fingerprint)


def check_gradients_now(config: MethodConfig) -> None:
    """The same for a method that needs no bank."""
    check_gradients(config, fetched=False)


def open_gradients(config: MethodConfig, lm: LanguageModel) -> Updates:
    """Updates from the method's bank. Raises `MetaInitError` if the model is not the MetaInit's base."""
    return GradientUpdates(config, Knowledge(lm, MetaInit.load(_meta_init(config))), fetched=True)


def open_gradients_now(config: MethodConfig, lm: LanguageModel) -> Updates:
    """Updates from gradients that are computed for every question."""
    return GradientUpdates(config, Knowledge(lm, MetaInit.load(_meta_init(config))), fetched=False)


class GradientUpdates:
    """phi0 - gamma * alpha * merged gradients; phi0 alone for a question none of whose passages has one."""

    def __init__(self, config: MethodConfig, knowledge: Knowledge, fetched: bool) -> None:
        self._config, self._knowledge = config, knowledge
        self._merge = MERGES[config.weighting]
        self._bank = BankAtoms(config, knowledge.fingerprint) if fetched else None

    def __call__(self, asked: Sequence[Asked]) -> Made:
        """See `Updates`."""
        check_scores(asked)
        found = self._found(asked)
        updates: list[Tensor | None] = [self._update(item) for item in found]
        return Made(updates, [item.bytes for item in found], [item.note for item in found])

    def _found(self, asked: Sequence[Asked]) -> list[Found]:
        if self._bank is None:
            absent = [Found(torch.empty(0), [], 0, [(passage, "") for passage in item.passages]) for item in asked]
            return [self._completed(*pair) for pair in zip(absent, asked, strict=True)]
        found = self._bank.of_all(asked)
        if self._config.on_missing != "online":
            return found
        return [self._completed(*pair) if pair[0].missing else pair[0] for pair in zip(found, asked, strict=True)]

    def _completed(self, found: Found, asked: Asked) -> Found:
        return with_computed(found, asked, self._knowledge.compute([passage for passage, _ in found.missing]))

    def _update(self, found: Found) -> Tensor:
        merged = self._merge(found.atoms, found.scores) if len(found.atoms) else self._knowledge.nothing
        return self._knowledge.update(merged, self._config.gamma)


def _meta_init(config: MethodConfig) -> str:
    if config.meta_init is None:
        raise MethodError(
            f"method {config.kind} ({config.name}) needs 'meta_init', which `regrad train` makes, and none is given"
        )
    return config.meta_init
