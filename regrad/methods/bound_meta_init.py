"""A MetaInit on its base model: what computes atoms for a question and makes updates of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regrad.data.passages import Passage
from regrad.gradients.extractor import AtomExtractor, Extracted
from regrad.meta_init import MetaInit
from regrad.models.batching import pad_batch, sequence_losses
from regrad.models.subspace import Update

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


class BoundMetaInit:
    """One MetaInit bound to its base model. Raises `MetaInitError` if the model is not its base.

    `compute` and `losses` run the model, so they must not run at the same time as anything else on it.
    """

    def __init__(self, lm: LanguageModel, meta_init: MetaInit) -> None:
        meta_init.check_base(lm)
        self._lm = lm
        self._meta_init = meta_init

    @cached_property
    def fingerprint(self) -> str:
        """The MetaInit's fingerprint."""
        return self._meta_init.fingerprint

    @cached_property
    def _extractor(self) -> AtomExtractor:
        return AtomExtractor(self._lm, self._meta_init)

    def compute(self, passages: Sequence[Passage]) -> list[Extracted]:
        """The passages' atoms, computed now (ReGrad Online), or for each the reason why it has none."""
        return self._extractor.extract(passages)

    def update(self, total_P: Tensor, gamma: float) -> Update:
        """See `MetaInit.update`."""
        meta_init = self._meta_init
        return Update(meta_init.subspace, meta_init.update(total_P, gamma), meta_init.acts_on)

    def norms(self, parts_KP: Tensor, gamma: float) -> list[float]:
        """The Euclidean norm of each passage's step, gamma * alpha * gradient."""
        norms: list[float] = (gamma * self._meta_init.alpha_P * parts_KP.float()).norm(dim=1).tolist()
        return norms

    @torch.inference_mode()
    def losses(
        self, prompt: str, answer: str, updates: Sequence[Tensor], ended: bool = True, raw: bool = False
    ) -> list[float]:
        """Minus the log-probability (natural log) of the answer under each of the updates.

        If the answer `ended` with the model's stop string, that counts as part of it; a `raw` prompt has no template.
        """
        start = self._lm.encode_prompt(prompt, raw)
        prompts = self._lm.config.prompts
        text = prompts.answer_text(answer) if raw else prompts.reply(answer)
        rest = self._lm.encode(text + (prompts.stop if ended else ""))
        updates_UP = torch.stack(list(updates)).to(self._lm.device)
        if self._meta_init.acts_on == "answer":
            # Here, as it brings transformers: seconds, in each process that plans and has no model.
            from regrad.inference.answer_losses import answer_losses

            return answer_losses(self._lm, start, rest, updates_UP).tolist()  # type: ignore[no-any-return]
        batch = pad_batch([start + rest] * len(updates), [len(start)] * len(updates), self._lm.pad_id, self._lm.device)
        # One text under several updates: the blocks that none of them reaches are run for one.
        entered_1TD = self._lm.blocks.enter(batch.ids[:1, :-1])
        if entered_1TD is not None:
            batch = replace(batch, entered=entered_1TD.expand(len(updates), -1, -1))
        with self._lm.lora.applied(updates_UP):
            losses: list[float] = sequence_losses(self._lm, batch, "sum").tolist()
        return losses
