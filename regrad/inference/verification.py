"""Whether the engine decodes with a model as the model itself does: a few tokens are read in both ways.

A model of a new kind can keep something beside keys and values, place its tokens or mask them in another way, and
would then answer fluently and wrongly. Costs some passes over a dozen tokens, once for each model in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from weakref import WeakSet

import torch
from torch import Tensor, nn

from regrad.errors import ModelError
from regrad.inference.cache import RowCache
from regrad.inference.forward import read_pieces
from regrad.models.loading import LanguageModel

# Where the pieces of two rows end: read in pieces of different lengths, then token by token, one row longer.
_CUTS = ((4, 6, 7, 8), (3, 5, 6))
_SHORT_WINDOW = 3
# Relative errors of logits. Other chunks are other sums: 1e-6 in float32, about 1e-2 in bfloat16. A state that is
# lost or a mask that is wrong costs far more.
_MOST_EXACT, _MOST_ROUNDED = 1e-2, 0.15
_VERIFIED: WeakSet[nn.Module] = WeakSet()


@torch.inference_mode()
def verify_decoding(lm: LanguageModel) -> None:
    """Raise `ModelError` if the engine's logits are not the model's own; does nothing for a model that has passed."""
    if lm.model in _VERIFIED:
        return
    _compare(lm)
    # A model's real window is too long to read beyond it here. Its masks are made from its configuration, in each pass.
    if any(lm.architecture.windows(lm.text_config).values()):
        with _window(lm, _SHORT_WINDOW):
            _compare(lm)
    _VERIFIED.add(lm.model)


def _compare(lm: LanguageModel) -> None:
    error = _relative_error(_own(lm), _engines(lm))
    exact = lm.compute_dtype in (torch.float32, torch.float64)
    if not error <= (_MOST_EXACT if exact else _MOST_ROUNDED):
        raise ModelError(
            f"the decoding engine does not give {type(lm.model).__name__}'s own logits (relative error {error:.2g}), "
            "so its answers would be wrong; choose another model"
        )


def _own(lm: LanguageModel) -> Tensor:
    """The model's own logits [M, V] at the end of each piece, each row read at once and alone."""
    parts = []
    for ids, cuts in zip(_rows(lm), _CUTS, strict=True):
        logits = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0]
        parts.append(logits[torch.tensor(cuts, device=lm.device) - 1])
    return torch.cat(parts)


def _engines(lm: LanguageModel) -> Tensor:
    """The engine's logits [M, V] at the same places, the rows read together in pieces."""
    cache = RowCache(int(lm.text_config.num_hidden_layers), 1 << 10)
    cache.reserve(len(_CUTS), max(cuts[-1] for cuts in _CUTS))
    windows, rows = lm.architecture.windows(lm.text_config), _rows(lm)
    spans = [list(pairwise((0, *cuts))) for cuts in _CUTS]
    found: list[list[Tensor]] = [[] for _ in rows]
    for step in range(max(map(len, spans))):
        active = [row for row in range(len(rows)) if step < len(spans[row])]
        pieces = [rows[row][slice(*spans[row][step])] for row in active]
        starts = [spans[row][step][0] for row in active]
        # The longer row is the first, so that those still active are the first of the cache.
        scores = read_pieces(lm, cache, windows, slice(0, len(active)), pieces, starts)
        for row, score in zip(active, scores, strict=True):
            found[row].append(score)
    return torch.stack([score for scores in found for score in scores])


def _rows(lm: LanguageModel) -> list[list[int]]:
    vocabulary = int(lm.text_config.vocab_size)
    return [[(3 + 7 * row + 5 * i) % vocabulary for i in range(cuts[-1])] for row, cuts in enumerate(_CUTS)]


def _relative_error(own_MV: Tensor, ours_MV: Tensor) -> float:
    own_MV, ours_MV = own_MV.double(), ours_MV.double()
    spread = (own_MV - own_MV.mean(-1, keepdim=True)).norm()
    return float((ours_MV - own_MV).norm() / spread.clamp_min(1e-12))


@contextmanager
def _window(lm: LanguageModel, tokens: int) -> Iterator[None]:
    """Inside the block, the layers that slide see so many tokens."""
    configs = {id(config): config for config in (lm.text_config, *(_config(m) for m in lm.model.modules()))}
    sliding = [
        (config, config.sliding_window) for config in configs.values() if getattr(config, "sliding_window", None)
    ]
    try:
        for config, _ in sliding:
            config.sliding_window = tokens
        yield
    finally:
        for config, window in sliding:
            config.sliding_window = window


def _config(module: nn.Module) -> object:
    return getattr(module, "config", None)
