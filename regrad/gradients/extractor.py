"""Per-passage gradients: a batch of passages in, one atom for each passage out; and the check that they are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor, nn

from regrad.data.passages import Passage
from regrad.errors import MetaInitError, ModelError, TokenOutOfVocabulary
from regrad.meta_init import MetaInit
from regrad.models.batching import TokenBatch, final_hidden, losses_and_grads, pad_batch, sequence_losses
from regrad.models.subspace import finite_rows

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

# The check reads a row of the one length alone and beside one of the other.
_CHECKED_TOKENS = (5, 24)
# Relative errors of atoms. Other shapes are other sums: 1e-6 in float32, a few 1e-2 in bfloat16. A row that depends on
# those beside it costs far more.
_MOST_EXACT = 1e-2
_MOST_ROUNDED = 0.15
_VERIFIED: WeakSet[nn.Module] = WeakSet()


def encode_passage(lm: LanguageModel, passage: Passage) -> list[int]:
    """The token ids whose gradient is the passage's atom: start token, text, and the end token if it is on."""
    return [*lm.bos, *lm.encode(lm.config.prompts.atom_text(passage)), *lm.ending]


def passage_batch(lm: LanguageModel, sequences: Sequence[Sequence[int]]) -> TokenBatch:
    """Encoded passages, padded; every token after the first is predicted."""
    return pad_batch(sequences, [1] * len(sequences), lm.pad_id, lm.device)


def passage_gradients(
    lm: LanguageModel,
    phi: Tensor,
    batch: TokenBatch,
    reduction: str = "mean",
    create_graph: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients [U, P] of each passage's language-model loss at phi, and the losses [U] (paper, eq. 1 and 2).

    `phi` is [P] for all passages, or [U, P], one start for each. With `create_graph` the result can be differentiated
    with respect to `phi` (second order). With `recompute` the adapted blocks keep no activations.
    """
    # One copy of phi for each row makes the gradient of the summed losses one gradient per passage. For a projection
    # with input x_i and output gradient d_i, autograd computes gB_i = s * d_i^T (x_i A^T) and gA_i = s * (d_i B)^T x_i.
    with torch.enable_grad():
        start = phi if create_graph else phi.detach()
        phi_UP = start.expand(batch.ids.shape[0], -1)
        phi_UP = phi_UP if create_graph else phi_UP.requires_grad_()
        with lm.lora.applied(phi_UP), lm.blocks.recomputed(recompute):
            if create_graph:
                losses = sequence_losses(lm, batch, reduction)
                (gradients,) = torch.autograd.grad(losses.sum(), phi_UP, create_graph=True)
            else:
                hidden_NTD = final_hidden(lm, batch)
                losses, grads_NTD = losses_and_grads(lm, hidden_NTD, batch, reduction)
                (gradients,) = torch.autograd.grad(hidden_NTD, phi_UP, grads_NTD)
    return gradients, losses.detach()


EncodeAtoms = Callable[[Tensor], Tensor]
"""Finite atoms [n, P] float32 -> encoded atoms [n, record_bytes] uint8 on the same device, such as `Codec.encode`."""


@dataclass(frozen=True)
class Extracted:
    """One passage's atom [P] float32, or its encoded bytes (`record`), or the reason why there is neither."""

    passage: Passage
    atom: Tensor | None = None
    problem: str = ""
    record: Tensor | None = None


def verify_extraction(lm: LanguageModel, phi: Tensor) -> None:
    """Raise `ModelError` if an atom depends on the passages beside it; does nothing for a model that has passed."""
    # Some models compute something for a whole batch: position factors by its longest row, capacities of experts,
    # statistics. A bank's atoms would then depend on how its passages happened to be batched. This costs a few passes
    # over two dozen tokens, once for a model in memory.
    if lm.model in _VERIFIED:
        return
    longest = lm.within(_CHECKED_TOKENS[1])
    rows = [[(3 + 7 * row + 5 * i) % lm.vocabulary_size for i in range(longest)] for row in range(2)]
    rows[0] = rows[0][: _CHECKED_TOKENS[0]]
    alone_UP = torch.cat([passage_gradients(lm, phi, passage_batch(lm, [row]))[0].float() for row in rows])
    if not finite_rows(alone_UP).all():
        return  # there is nothing to compare with; passages without a finite gradient are quarantined
    error_UP = passage_gradients(lm, phi, passage_batch(lm, rows))[0].float() - alone_UP
    relative = float((error_UP.norm(dim=1) / alone_UP.norm(dim=1).clamp_min(1e-12)).nan_to_num(torch.inf).max())
    exact = lm.compute_dtype in (torch.float32, torch.float64)
    if relative > (_MOST_EXACT if exact else _MOST_ROUNDED):
        raise ModelError(
            f"an atom of {type(lm.model).__name__} depends on the passages computed in the same batch (relative error "
            f"{relative:.2g} next to a longer one), so a bank of them would be wrong; choose another model",
            code="atoms_not_independent",
            model=type(lm.model).__name__,
            relative_error=relative,
        )
    _VERIFIED.add(lm.model)


class AtomExtractor:
    """Computes atoms at one MetaInit, on the thread that runs the model.

    Raises `MetaInitError` if the language model is not the MetaInit's base, and `ModelError` if its atoms depend on
    each other (see `verify_extraction`).
    """

    def __init__(
        self, lm: LanguageModel, meta_init: MetaInit, batch_tokens: int = 2048, max_passage_tokens: int = 2048
    ) -> None:
        meta_init.check_base(lm)
        if meta_init.inner_steps > 1:
            raise MetaInitError(
                f"the MetaInit was trained for {meta_init.inner_steps} inner steps, but an atom is a gradient at phi0 "
                "and serves one; train with inner.steps 1",
                code="several_inner_steps",
                inner_steps=meta_init.inner_steps,
            )
        self._lm = lm
        self._reduction = meta_init.inner_reduction
        self._phi0 = meta_init.phi0.to(lm.device)
        verify_extraction(lm, self._phi0)
        self._batch_tokens = batch_tokens
        self._max_tokens = lm.within(max_passage_tokens)

    def at(self, phi0_P: Tensor) -> AtomExtractor:
        """The same on the same model, which was checked, at another phi0."""
        other = copy(self)
        other._phi0 = phi0_P.to(self._lm.device)
        return other

    def extract(self, passages: Sequence[Passage], encode: EncodeAtoms | None = None) -> list[Extracted]:
        """One result for each passage, in order. How they are batched changes an atom only by rounding.

        With `encode` (a codec's), each batch's atoms are encoded where they were computed and then dropped: only the
        encoded bytes are copied to the CPU and kept. Without it, all float32 atoms are.
        """
        encoded, results = [], []
        for passage in passages:
            ids, problem = self._encode(passage)
            encoded.append(ids)
            results.append(Extracted(passage, problem=problem))
        fit = sorted((i for i, result in enumerate(results) if not result.problem), key=lambda i: len(encoded[i]))
        for rows in self._batches(fit, encoded):
            found = self._extract_batch([passages[row] for row in rows], [encoded[row] for row in rows], encode)
            for row, result in zip(rows, found, strict=True):
                results[row] = result
        return results

    def _extract_batch(
        self, passages: list[Passage], sequences: list[list[int]], encode: EncodeAtoms | None
    ) -> list[Extracted]:
        # A separate function, so that nothing refers to this batch's atoms when those of the next are computed.
        batch = passage_batch(self._lm, sequences)
        atoms_BP = passage_gradients(self._lm, self._phi0, batch, self._reduction)[0].float()
        finite = finite_rows(atoms_BP)
        if not finite.all():  # a selection is a copy, of gigabytes
            atoms_BP = atoms_BP[finite]
        kept = iter(atoms_BP.cpu() if encode is None else encode(atoms_BP).cpu())
        field = "atom" if encode is None else "record"
        return [
            Extracted(passage, **{field: next(kept)}) if ok else Extracted(passage, problem="non-finite gradient")
            for passage, ok in zip(passages, finite.tolist(), strict=True)
        ]

    def _batches(self, rows: Sequence[int], encoded: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        batch: list[int] = []
        for row in rows:
            if batch and (len(batch) + 1) * len(encoded[row]) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _encode(self, passage: Passage) -> tuple[list[int], str]:
        """The token ids, and the reason why the passage can have no atom (empty: it can)."""
        try:
            ids = encode_passage(self._lm, passage)
        except TokenOutOfVocabulary as error:
            return [], str(error)
        problem = ""
        if not passage.text.strip():
            problem = "empty text"
        elif len(ids) < 2:
            problem = "nothing to predict in fewer than two tokens"
        elif len(ids) > self._max_tokens:
            problem = f"{len(ids)} tokens, more than {self._max_tokens}; split the passage"
        return ids, problem
