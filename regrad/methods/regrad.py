"""ReGrad: the update phi0 - gamma * alpha * sum of the passages' gradients, from a bank or computed now."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from regrad.data.passages import Passage
from regrad.errors import BankError, FingerprintMismatch, MethodError
from regrad.gradients.extractor import AtomExtractor, Extracted
from regrad.gradients.merging import MERGES
from regrad.meta_init import MetaInit, read_card
from regrad.methods.atoms import BankAtoms, Found, bank_manifest, check_scores, with_computed
from regrad.methods.base import Asked, Made, Method, Updates
from regrad.methods.config import MethodConfig
from regrad.models.batching import pad_batch, sequence_losses
from regrad.models.loading import LanguageModel


class Knowledge:
    """One MetaInit bound to its base model. Raises `MetaInitError` if the model is not its base.

    What runs the model (`compute`, `leave_one_out`) must not run at the same time as anything else on it.
    """

    def __init__(self, lm: LanguageModel, meta_init: MetaInit) -> None:
        meta_init.check_base(lm)
        self._lm, self._meta_init = lm, meta_init

    @cached_property
    def fingerprint(self) -> str:
        """Of the MetaInit."""
        return self._meta_init.fingerprint

    @cached_property
    def _extractor(self) -> AtomExtractor:
        return AtomExtractor(self._lm, self._meta_init)

    @cached_property
    def _alpha_P(self) -> Tensor:
        return self._meta_init.subspace.per_tensor(self._meta_init.step_sizes).float()

    @property
    def nothing(self) -> Tensor:
        """The sum of no gradients [P]."""
        return torch.zeros_like(self._meta_init.phi0)

    def compute(self, passages: Sequence[Passage]) -> list[Extracted]:
        """The passages' atoms now (ReGrad Online), each or the reason why there is none."""
        return self._extractor.extract(passages)

    def update(self, total_P: Tensor, gamma: float) -> Tensor:
        """phi0 - gamma * alpha * total, [P] float32 (paper, eq. 3). Raises `BankError` for a sum of another size."""
        if total_P.shape != self._meta_init.phi0.shape:
            raise BankError(f"the bank's sums have {total_P.numel()} numbers, not {self._meta_init.phi0.numel()}")
        return torch.addcmul(self._meta_init.phi0, self._alpha_P, total_P.float(), value=-gamma)

    def norms(self, parts_KP: Tensor, gamma: float) -> list[float]:
        """The Euclidean norm of each passage's step, gamma * alpha * gradient."""
        norms: list[float] = (gamma * self._alpha_P * parts_KP.float()).norm(dim=1).tolist()
        return norms

    @torch.inference_mode()
    def leave_one_out(
        self, prompt: str, answer: str, parts_KP: Tensor, gamma: float, ended: bool = True, raw: bool = False
    ) -> list[float]:
        """How much log-probability (natural log) the answer loses when each one of the gradients is left out.

        If the answer `ended` by the model's own stop string, that counts as part of it; a `raw` prompt is as it is.
        """
        parts_KP = parts_KP.float()
        total_P = parts_KP.sum(0)
        updates = [self.update(total, gamma) for total in (total_P, *(total_P - part for part in parts_KP))]
        start = self._lm.encode_prompt(prompt, raw)
        prompts = self._lm.config.prompts
        ids = start + self._lm.encode(prompts.answer_text(answer) + (prompts.stop if ended else ""))
        batch = pad_batch([ids] * len(updates), [len(start)] * len(updates), self._lm.pad_id, self._lm.device)
        with self._lm.lora.applied(torch.stack(updates).to(self._lm.device)):
            losses = sequence_losses(self._lm, batch, "sum").tolist()
        return [loss - losses[0] for loss in losses[1:]]


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
    MERGES.check(config.weighting)
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
