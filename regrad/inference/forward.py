"""One forward pass over rows that are at different places: the next piece of each prompt, or one token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regrad.inference.cache import RowCache
from regrad.models.loading import LanguageModel


def read_pieces(
    lm: LanguageModel,
    cache: RowCache,
    windows: dict[str, int | None],
    rows: slice | Tensor,
    pieces: Sequence[list[int]],
    starts: Sequence[int],
) -> Tensor:
    """Logits [N, V] after the last token of each piece.

    Piece i continues the i-th of the cache's `rows` at position `starts[i]`; `windows` is what
    `Architecture.windows` gives.
    """
    device = lm.device
    lengths = [len(piece) for piece in pieces]
    most = max(lengths)
    ids_NT = torch.tensor([piece + [lm.pad_id] * (most - len(piece)) for piece in pieces], device=device)
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    length = max(ends) + (min(lengths) < most)  # one more, where padding goes that would be beyond all ends
    positions_NT = torch.tensor(starts, device=device)[:, None] + torch.arange(most, device=device)
    positions_NT = positions_NT.clamp(max=length - 1)
    cache.aim(rows, positions_NT, length)
    output = lm.model.base_model(  # type: ignore[operator]
        input_ids=ids_NT,
        attention_mask=_masks(positions_NT, length, lm.compute_dtype, windows),
        position_ids=positions_NT,
        past_key_values=cache,
        use_cache=True,
    )
    last = torch.tensor(lengths, device=device) - 1
    return lm.logits(output.last_hidden_state[torch.arange(len(pieces), device=device), last])


def _masks(
    positions_NT: Tensor, length: int, dtype: torch.dtype, windows: dict[str, int | None]
) -> Tensor | dict[str, Tensor]:
    """The mask of all layers, or by their kind, as transformers' models take them, where the kinds differ in this pass.

    A model takes a finished mask as it is and would not add its window to it.
    """
    reach = {kind: window if window is not None and window < length else None for kind, window in windows.items()}
    masks = {window: _mask(positions_NT, length, dtype, window) for window in set(reach.values())}
    return masks.popitem()[1] if len(masks) == 1 else {kind: masks[window] for kind, window in reach.items()}


def _mask(positions_NT: Tensor, length: int, dtype: torch.dtype, window: int | None) -> Tensor:
    """[N, 1, T, length], 0 where a token sees another of its row, else the least number.

    It sees itself and those before it, `window` tokens in all.
    """
    others = torch.arange(length, device=positions_NT.device)
    seen = others <= positions_NT[:, :, None]
    if window is not None:
        seen &= others > positions_NT[:, :, None] - window
    blocked = torch.zeros((), dtype=dtype, device=seen.device)
    return torch.where(seen, blocked, torch.finfo(dtype).min)[:, None]
