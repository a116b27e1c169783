"""The updates of the rows of a batch, ready to be applied: copied once when a row joins, viewed in every pass."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from regrad.language_model.loading import LanguageModel

_FIRST_ROWS = 4


class RowUpdates:
    """Updates [S, P] in the model's precision, the scale of each B multiplied in."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm, subspace = lm, lm.subspace
        b = [subspace.scaling if name.endswith(".B") else 1.0 for name in subspace.shapes]
        self._scale_P = subspace.per_tensor(torch.tensor(b))
        self._kept = self._blank(_FIRST_ROWS)
        self._views: dict[tuple[int, int], dict[str, Tensor]] = {}

    def put(self, row: int, update_P: Tensor | None) -> None:
        """Set a row's update; None is zeros, for which B A x is zero and the base model answers."""
        if row >= self._kept.shape[0]:
            larger = self._blank(2 * row)
            larger[: self._kept.shape[0]] = self._kept
            self._kept, self._views = larger, {}
        if update_P is None:
            self._kept[row].zero_()
        else:
            self._kept[row].copy_(update_P.float().to(self._scale_P.device) * self._scale_P)

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        self._kept[target].copy_(self._kept[source])

    def applied(self, rows: slice | Tensor) -> AbstractContextManager[None]:
        """Inside the block, row i of a pass runs with the update of the i-th of `rows`."""
        if isinstance(rows, Tensor):
            return self._lm.lora.applied_scaled(self._lm.subspace.unflatten(self._kept[rows]))
        key = (rows.start, rows.stop)
        if key not in self._views:
            one = rows.stop - rows.start == 1
            self._views[key] = self._lm.subspace.unflatten(self._kept[rows.start] if one else self._kept[rows])
        return self._lm.lora.applied_scaled(self._views[key])

    def _blank(self, rows: int) -> Tensor:
        return torch.zeros(rows, self._lm.subspace.size, dtype=self._lm.compute_dtype, device=self._lm.device)
