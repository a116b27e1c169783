"""The updates of the engine's rows, kept by the subspace that they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor

from regrad.inference.cache import grown
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace

_FIRST_ROWS = 4


class RowUpdates:
    """What each row runs with: an update in one subspace or in several, or none.

    A subspace takes memory only while a row has an update in it, and time only in passes of such a row.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._dtype = lm.compute_dtype
        # The model's own subspace is kept for good: most rows have their update there, and making room for it at every
        # single request costs more than keeping it.
        self._kept = {lm.subspace: _SubspaceRows(lm, lm.subspace, self._dtype)}

    def put(self, row: int, vectors: Mapping[Subspace, Tensor]) -> None:
        """Replace a row's updates ([P] in each subspace)."""
        for subspace in vectors:
            if subspace not in self._kept:
                self._kept[subspace] = _SubspaceRows(self._lm, subspace, self._dtype)
        for subspace, kept in self._kept.items():
            kept.put(row, vectors.get(subspace))

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        for kept in self._kept.values():
            kept.move(source, target)

    def truncate(self, rows: int) -> None:
        """Only the first `rows` are in use from now on; what none of them needs is dropped."""
        for kept in self._kept.values():
            kept.truncate(rows)
        for subspace in [subspace for subspace, kept in self._kept.items() if not kept.users]:
            if subspace != self._lm.subspace:
                self._kept.pop(subspace).release()

    def applied(self, numbers: Sequence[int], rows: slice | Tensor) -> AbstractContextManager[None]:
        """Inside the block, row i of a pass runs with the updates of row `numbers[i]`; `rows` is `numbers` as index."""
        needed = [kept.applied(rows) for kept in self._kept.values() if not kept.users.isdisjoint(numbers)]
        if len(needed) < 2:  # the usual case, and a stack costs a pass of a small model a few percent
            return needed[0] if needed else nullcontext()
        return _entered(needed)


@contextmanager
def _entered(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


class _SubspaceRows:
    """Updates [S, P] in one subspace, in the model's precision, each B multiplied by the subspace's scale."""

    # Rows without an update, which are not in `users`, are zeros, for which B A x is zero. So the rows of any pass are
    # one view of the memory, and usually one that an earlier pass has made.

    def __init__(self, lm: LanguageModel, subspace: Subspace, dtype: torch.dtype) -> None:
        self.users: set[int] = set()
        self._subspace = subspace
        self._lora = lm.lora_for(subspace)
        self._dtype = dtype
        self._lora.hold()
        scales = [subspace.scaling if name.endswith(".B") else 1.0 for name in subspace.shapes]
        self._scale_P = subspace.per_tensor(torch.tensor(scales, device=lm.device))
        self._kept = self._blank(_FIRST_ROWS)
        self._views: dict[tuple[int, int], dict[str, Tensor]] = {}

    def put(self, row: int, update_P: Tensor | None) -> None:
        if row >= self._kept.shape[0]:
            larger = self._blank(grown(self._kept.shape[0], row + 1))
            larger[: self._kept.shape[0]] = self._kept
            self._kept = larger
            self._views = {}
        if update_P is None:
            self._kept[row].zero_()
            self.users.discard(row)
        else:
            self._kept[row].copy_(update_P.float().to(self._scale_P.device) * self._scale_P)
            self.users.add(row)

    def move(self, source: int, target: int) -> None:
        if source in self.users or target in self.users:
            self._kept[target].copy_(self._kept[source])
        self.users.discard(target)
        if source in self.users:
            self.users.add(target)

    def truncate(self, rows: int) -> None:
        self.users = {row for row in self.users if row < rows}

    def release(self) -> None:
        self._lora.release()

    def applied(self, rows: slice | Tensor) -> AbstractContextManager[None]:
        if isinstance(rows, Tensor):
            return self._lora.applied_scaled(self._subspace.unflatten(self._kept[rows]))
        key = (rows.start, rows.stop)
        if key not in self._views:
            one = rows.stop - rows.start == 1
            self._views[key] = self._subspace.unflatten(self._kept[rows.start] if one else self._kept[rows])
        return self._lora.applied_scaled(self._views[key])

    def _blank(self, rows: int) -> Tensor:
        return torch.zeros(rows, self._subspace.size, dtype=self._dtype, device=self._scale_P.device)
