"""Virtual tokens: embeddings that are read as tokens and stand for no text, such as those of a soft prompt.

They have ids beyond every vocabulary. Where a pass has such an id, the model's input embedding gives a row of a table
that is kept beside it, so batches, a context's room, counts of tokens and the sharing of what prompts begin with treat
them as any tokens. The weights stay as they are, and a model that was never given one runs as it always did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrad.errors import ModelError
from regrad.models.sharded import whole_shape
from regrad.text import in_one_line

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

_FIRST = 1 << 40
# Relative, and the same sums in both ways: far below what reading another token costs.
_MOST_DIFFERENT = 1e-2


class VirtualTokens:
    """The virtual tokens of one input embedding: `put` adds some, and their ids stand for them in every later pass."""

    def __init__(self, embedding: nn.Module) -> None:
        self._embedding, self._own = embedding, embedding.forward
        weight: Tensor = embedding.weight  # type: ignore[assignment]
        self._table_VD = weight.new_zeros(0, int(whole_shape(weight)[1]))
        self.changes = 0  # how often an id came to stand for something else
        # An instance's own `forward` hides the class's; hooks on the module run as ever.
        embedding.forward = self._read  # type: ignore[method-assign]

    def release(self) -> None:
        """Leave the embedding as it was: no id is used any more."""
        self._embedding.forward = self._own  # type: ignore[method-assign]

    def put(self, values_ND: Tensor) -> tuple[int, ...]:
        """Keep these embeddings, what the model reads as `inputs_embeds`, and give their ids; the same have the same.

        They are rounded to the weights' data type. Raises `ModelError` for another width, or numbers that are not
        finite.
        """
        width = self._table_VD.shape[1]
        if values_ND.dim() != 2 or values_ND.shape[1] != width:
            raise ModelError(
                f"virtual tokens of {width} numbers each are expected, found the shape {list(values_ND.shape)}; they "
                "were trained for another model",
                code="virtual_tokens_of_another_width",
                expected=width,
                found=list(values_ND.shape),
            )
        if not torch.isfinite(values_ND).all():
            raise ModelError("an embedding of a virtual token is not finite", code="virtual_tokens_not_finite")
        values_ND = values_ND.detach().to(self._table_VD)
        count, known = len(values_ND), len(self._table_VD)
        # An evaluation opens a method once for each of its cells: the table must not grow with them.
        for start in range(known - count + 1):
            if torch.equal(self._table_VD[start : start + count], values_ND):
                return _ids(start, count)
        self._table_VD = torch.cat([self._table_VD, values_ND])
        return _ids(known, count)

    @contextmanager
    def replaced(self, ids: Sequence[int], values_ND: Tensor) -> Iterator[None]:
        """Inside the block the tokens of these consecutive ids have other embeddings; differentiable in those."""
        before, start = self._table_VD, ids[0] - _FIRST
        parts = before[:start].to(values_ND), values_ND, before[start + len(ids) :].to(values_ND)
        self._table_VD = torch.cat(parts)
        self.changes += 1
        try:
            yield
        finally:
            self._table_VD = before
            self.changes += 1

    def _read(self, ids_NT: Tensor) -> Tensor:
        """The embeddings [N, T, D] of ids of both kinds."""
        # On a processor the usual pass, without any, costs a comparison; a GPU would have to be waited for to know it.
        if ids_NT.device.type == "cpu" and not bool((ids_NT >= _FIRST).any()):
            return self._own(ids_NT)  # type: ignore[no-any-return]
        virtual_NT = ids_NT >= _FIRST
        own_NTD: Tensor = self._own(ids_NT.masked_fill(virtual_NT, 0))
        places_NT = (ids_NT - _FIRST).clamp(0, len(self._table_VD) - 1)
        rows_NTD = F.embedding(places_NT, self._table_VD.to(own_NTD))
        return torch.where(virtual_NT[..., None], rows_NTD, own_NTD)


def _ids(start: int, count: int) -> tuple[int, ...]:
    return tuple(range(_FIRST + start, _FIRST + start + count))


_OF_MODEL: WeakKeyDictionary[nn.Module, VirtualTokens] = WeakKeyDictionary()


def virtual_tokens(lm: LanguageModel) -> VirtualTokens:
    """Those of this model, none at first.

    Raises `ModelError` for a model that does not read them as embeddings given to it.
    """
    if lm.model not in _OF_MODEL:
        embedding: nn.Module = lm.model.get_input_embeddings()  # type: ignore[operator]
        tokens = VirtualTokens(embedding)
        try:
            _check(lm, embedding, tokens)
        except BaseException:
            tokens.release()
            raise
        _OF_MODEL[lm.model] = tokens
    return _OF_MODEL[lm.model]


def changes_of_virtual_tokens(lm: LanguageModel) -> int:
    """How often a virtual token of this model came to stand for something else."""
    known = _OF_MODEL.get(lm.model)
    return 0 if known is None else known.changes


@torch.no_grad()
def _check(lm: LanguageModel, embedding: nn.Module, tokens: VirtualTokens) -> None:
    """Raise `ModelError` unless the model does the same with the ids as with the embeddings."""
    # A model may look at ids elsewhere, too, and would then read something else. The two rows for this stay unused.
    known = torch.tensor([[3, 4, 5, 6]], device=lm.device) % lm.vocabulary_size
    given_1TD = embedding(known).clone()
    given_1TD[:, :2] = given_1TD[:, [1, 0]]
    ids = torch.tensor([[*tokens.put(given_1TD[0, :2]), *known[0, 2:].tolist()]], device=lm.device)
    base, kind = lm.model.base_model, type(lm.model).__name__
    try:
        expected = base(inputs_embeds=given_1TD, use_cache=False).last_hidden_state.double()  # type: ignore[operator]
        found = base(input_ids=ids, use_cache=False).last_hidden_state.double()  # type: ignore[operator]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"{kind} takes no virtual tokens: {type(error).__name__}: {in_one_line(error, 200)}; choose another model, "
            "or train a LoRA",
            code="no_virtual_tokens",
            model=kind,
        ) from error
    if not (found - expected).norm() <= _MOST_DIFFERENT * (expected - expected.mean()).norm():
        raise ModelError(
            f"{kind} reads virtual tokens in another way than the embeddings that they stand for; choose another "
            "model, or train a LoRA",
            code="virtual_tokens_read_otherwise",
            model=kind,
        )
