"""The passages that a question may rest on: the best of both retrievers, from vectors that stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regrad.retrieval.embedding import Vectors
from regrad.training.retriever.chains import NO_STATE

_BLOCK = 65_536


class PassageVectors:
    """The vectors [N, D] of an index; they are read from their file, so they need not fit in memory."""

    def __init__(self, vectors: Vectors, device: torch.device) -> None:
        self._vectors_ND = torch.from_numpy(vectors)
        self.device = device

    def like(self, vectors: Vectors) -> PassageVectors:
        """Others of the same passages."""
        return PassageVectors(vectors, self.device)

    def nearest(self, queries_BD: Tensor, k: int) -> Tensor:
        """The rows of the k largest inner products [B, k], best first."""
        best_scores: list[Tensor] = []
        best_rows: list[Tensor] = []
        for start in range(0, len(self._vectors_ND), _BLOCK):
            block_CD = self._vectors_ND[start : start + _BLOCK].to(self.device)
            scores_Bk, rows_Bk = (queries_BD @ block_CD.T).topk(min(k, len(block_CD)), 1)
            best_scores.append(scores_Bk)
            best_rows.append(rows_Bk + start)
        order_Bk = torch.cat(best_scores, 1).topk(k, 1).indices
        return torch.cat(best_rows, 1).gather(1, order_Bk)

    def of(self, rows_BU: Tensor) -> Tensor:
        """Vectors of these rows [B, U, D]."""
        return self._vectors_ND[rows_BU.cpu()].to(self.device)


@dataclass(frozen=True)
class Union:
    """The rows [B, U] that each question's passages have, where a row is there once; `Candidates` names the masks.

    `start` is the place of the row that a chain is kept at [B], `NO_STATE` if it has none.
    """

    rows: Tensor
    present: Tensor
    by_prior: Tensor
    by_posterior: Tensor
    start: Tensor


def unite(by_prior_Bk: Tensor, by_posterior_Bk: Tensor, kept_B: Tensor) -> Union:
    """Both retrievers' rows and the states of kept chains (`NO_STATE`: none), each once."""
    # A chain's last state is among its candidates, found again or not: the chain goes on from it.
    rows_BU, _ = torch.cat([by_prior_Bk, by_posterior_Bk, kept_B[:, None]], 1).sort(1)
    repeated_BU = torch.zeros_like(rows_BU, dtype=torch.bool)
    repeated_BU[:, 1:] = rows_BU[:, 1:] == rows_BU[:, :-1]
    present_BU = ~repeated_BU & (rows_BU != NO_STATE)
    at_kept_BU = present_BU & (rows_BU == kept_B[:, None])
    start_B = torch.where(at_kept_BU.any(1), at_kept_BU.int().argmax(1), NO_STATE)
    prior_BU, posterior_BU = (
        present_BU & (rows_BU[:, :, None] == found_Bk[:, None, :]).any(2) for found_Bk in (by_prior_Bk, by_posterior_Bk)
    )
    return Union(rows_BU.clamp_min(0), present_BU, prior_BU, posterior_BU, start_B)
