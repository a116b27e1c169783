"""A MetaInit in use on a language model: sums of gradients to updates, passages to gradients, and who contributed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from regrad.atoms.extractor import AtomExtractor, Extracted
from regrad.corpus import Passage
from regrad.errors import BankError
from regrad.language_model.batching import pad_batch, sequence_losses
from regrad.language_model.loading import LanguageModel
from regrad.meta_init import MetaInit


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
    def leave_one_out(self, prompt: str, answer: str, parts_KP: Tensor, gamma: float, raw: bool = False) -> list[float]:
        """How much log-probability (natural log) the answer loses when each one of the gradients is left out."""
        parts_KP = parts_KP.float()
        total_P = parts_KP.sum(0)
        updates = [self.update(total, gamma) for total in (total_P, *(total_P - part for part in parts_KP))]
        start = self._lm.encode_prompt(prompt, raw)
        text = self._lm.config.prompts.answer_text(answer) + self._lm.config.prompts.stop
        ids = start + self._lm.encode(text)
        batch = pad_batch([ids] * len(updates), [len(start)] * len(updates), self._lm.pad_id, self._lm.device)
        with self._lm.lora.applied(torch.stack(updates).to(self._lm.device)):
            losses = sequence_losses(self._lm, batch, "sum").tolist()
        return [loss - losses[0] for loss in losses[1:]]
