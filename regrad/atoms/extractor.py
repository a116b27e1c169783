"""Passages -> atoms: batches of similar length, one forward and one backward each; a bad passage stops nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regrad.atoms.gradients import encode_passage, passage_batch, passage_gradients
from regrad.corpus import Passage
from regrad.errors import MetaInitError
from regrad.language_model.loading import LanguageModel
from regrad.meta_init import MetaInit


@dataclass(frozen=True)
class Extracted:
    """One passage's atom [P] float32, or the reason why there is none."""

    passage: Passage
    atom: Tensor | None
    problem: str = ""


class AtomExtractor:
    """Computes atoms at one MetaInit. Raises `MetaInitError` if the language model is not the MetaInit's base."""

    def __init__(
        self, lm: LanguageModel, meta_init: MetaInit, batch_tokens: int = 2048, max_passage_tokens: int = 2048
    ) -> None:
        meta_init.check_base(lm)
        if meta_init.inner_steps > 1:
            raise MetaInitError(
                f"the MetaInit was learned for {meta_init.inner_steps} inner steps; an atom is a gradient at phi0 and "
                "serves one: train with inner.steps 1"
            )
        self._lm, self._reduction = lm, meta_init.inner_reduction
        self._phi0 = meta_init.phi0.to(lm.device)
        self._batch_tokens = batch_tokens
        context = getattr(lm.model.config, "max_position_embeddings", max_passage_tokens)
        self._max_tokens = min(max_passage_tokens, context)

    def extract(self, passages: Sequence[Passage]) -> list[Extracted]:
        """One result a passage, in the order given. The batching changes no atom beyond rounding."""
        encoded = [encode_passage(self._lm, passage) for passage in passages]
        problems = [self._problem(passage, ids) for passage, ids in zip(passages, encoded, strict=True)]
        results = [Extracted(passage, None, problem) for passage, problem in zip(passages, problems, strict=True)]
        fit = sorted((i for i, problem in enumerate(problems) if not problem), key=lambda i: len(encoded[i]))
        for rows in self._batches(fit, encoded):
            atoms = self._gradients([encoded[row] for row in rows])
            for row, atom in zip(rows, atoms, strict=True):
                finite = bool(torch.isfinite(atom).all())
                found = (
                    Extracted(passages[row], atom) if finite else Extracted(passages[row], None, "non-finite gradient")
                )
                results[row] = found
        return results

    def _gradients(self, sequences: list[list[int]]) -> Tensor:
        batch = passage_batch(self._lm, sequences)
        return passage_gradients(self._lm, self._phi0, batch, self._reduction)[0].float().cpu()

    def _batches(self, rows: Sequence[int], encoded: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        batch: list[int] = []
        for row in rows:
            if batch and (len(batch) + 1) * len(encoded[row]) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _problem(self, passage: Passage, ids: Sequence[int]) -> str:
        if not passage.text.strip():
            return "empty text"
        if len(ids) < 2:
            return "nothing to predict in fewer than two tokens"
        if len(ids) > self._max_tokens:
            return f"{len(ids)} tokens, more than {self._max_tokens}; split the passage"
        return ""
