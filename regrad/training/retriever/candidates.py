"""The passages that a question may rest on: the best of both retrievers, from vectors that stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regrad.errors import RetrievalError
from regrad.retrieval.embedding import Vectors
from regrad.training.retriever.chains import NO_STATE

_BLOCK = 65_536


class PassageVectors:
    """The vectors [N, D] of the index at `uri`; they are read from their file, so they need not fit in memory."""

    def __init__(self, vectors: Vectors, device: torch.device, uri: str) -> None:
        self._vectors_ND = torch.from_numpy(vectors)
        self.device, self._uri = device, uri

    def like(self, vectors: Vectors) -> PassageVectors:
        """Others of the same passages."""
        return PassageVectors(vectors, self.device, self._uri)

    def nearest(self, queries_BD: Tensor, k: int) -> Tensor:
        """The rows of the k largest inner products [B, k], best first.

        Raises `RetrievalError` if the vector of one of them is not finite; a passage whose score is no number always is
        one of them. A question's vector that is not finite is the encoder's fault, and passes.
        """
        best_scores: list[Tensor] = []
        best_rows: list[Tensor] = []
        for start in range(0, len(self._vectors_ND), _BLOCK):
            block_CD = self._vectors_ND[start : start + _BLOCK].to(self.device)
            scores_Bk, rows_Bk = (queries_BD @ block_CD.T).topk(min(k, len(block_CD)), 1)
            best_scores.append(scores_Bk)
            best_rows.append(rows_Bk + start)
        scores_Bk, order_Bk = torch.cat(best_scores, 1).topk(k, 1)
        rows_Bk = torch.cat(best_rows, 1).gather(1, order_Bk)
        if not bool(torch.isfinite(scores_Bk).all()):
            self._check(rows_Bk)
        return rows_Bk

    def _check(self, rows_Bk: Tensor) -> None:
        rows = torch.unique(rows_Bk.cpu())
        broken = rows[~torch.isfinite(self._vectors_ND[rows]).all(1)]
        if len(broken):
            raise RetrievalError(
                f"the vectors of the index at {self._uri} are damaged: that of passage {int(broken[0])}, from 0, is "
                "not finite; restore them (`regrad index --check` names the file), or make the index again",
                code="damaged",
                uri=self._uri,
                row=int(broken[0]),
            )

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
