"""The check that the engine decodes a model as the model itself does. One that it would decode wrongly is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from regrad.errors import ModelError
from regrad.inference.kernels import Kernels
from regrad.inference.passes import Readers, RowCache, read_pieces
from regrad.models.loading import LanguageModel
from regrad.text import in_one_line

logger = logging.getLogger(__name__)

# The check reads two rows in pieces that end here: in pieces of different lengths, then token by token, one row longer.
_CUTS = ((4, 6, 7, 8), (3, 5, 6))
_SHORT_WINDOW = 3
# Relative errors of logits. Other pieces are other sums: 1e-6 in float32, about 1e-2 in bfloat16. A lost state or a
# wrong mask costs far more.
_MOST_EXACT = 1e-2
_MOST_ROUNDED = 0.15
_VERIFIED: WeakKeyDictionary[nn.Module, Verified] = WeakKeyDictionary()


@dataclass(frozen=True)
class Verified:
    """How the engine may run a model: its kernels, and what rows that read the same may share.

    That is the lower blocks, under updates that do not reach them, and the whole model, without any.
    """

    kernels: Kernels
    shares: bool
    shares_whole: bool


@torch.inference_mode()
def verify_decoding(lm: LanguageModel) -> Verified:
    """The ways with which the engine's logits are the model's own; for a model that has passed, the same again.

    Raises `ModelError` if there is none.
    """
    # A model of a new kind can keep something beside keys and values, or place or mask its tokens in another way, and
    # would then answer fluently and wrongly. This costs a few passes over a dozen tokens, once for a model in memory.
    if lm.model in _VERIFIED:
        return _VERIFIED[lm.model]
    kernels = _fastest(lm)
    _VERIFIED[lm.model] = Verified(kernels, _shares(lm, kernels, whole=False), _shares(lm, kernels, whole=True))
    return _VERIFIED[lm.model]


def _fastest(lm: LanguageModel) -> Kernels:
    *faster, own = Kernels.choices(lm)
    for kernels in faster:
        try:
            _verify(lm, kernels)
        except ModelError as error:
            logger.info("the engine does without faster kernels for %s: %s", type(lm.model).__name__, error)
        else:
            return kernels
    _verify(lm, own)
    return own


def _verify(lm: LanguageModel, kernels: Kernels) -> None:
    _compare(lm, kernels)
    # A model's real window is too long to read beyond it here. Its masks are made from its configuration, in each pass.
    if any(lm.architecture.windows(lm.text_config).values()):
        with _short_window(lm):
            _compare(lm, kernels)


def _compare(lm: LanguageModel, kernels: Kernels) -> None:
    vocabulary = int(lm.text_config.vocab_size)
    rows = [[(3 + 7 * row + 5 * i) % vocabulary for i in range(cuts[-1])] for row, cuts in enumerate(_CUTS)]
    own = []
    for ids, cuts in zip(rows, _CUTS, strict=True):
        logits_TV = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0]
        own.append(logits_TV[torch.tensor(cuts, device=lm.device) - 1])
    own_MV = torch.cat(own).double()
    try:
        error_MV = _piecewise_logits(lm, rows, kernels).double() - own_MV
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = in_one_line(error, 200)
        raise ModelError(
            f"the decoding engine cannot run {type(lm.model).__name__}: {type(error).__name__}: {reason}; choose "
            "another model",
            code="not_decodable",
            model=type(lm.model).__name__,
        ) from error
    relative = _relative(error_MV, own_MV)
    if not relative <= _most(lm):
        raise ModelError(
            f"the decoding engine does not reproduce the logits of {type(lm.model).__name__} (relative error "
            f"{relative:.2g}), so its answers would be wrong; choose another model",
            code="decoded_wrongly",
            model=type(lm.model).__name__,
            relative_error=relative,
        )


def _relative(error_MV: Tensor, own_MV: Tensor) -> float:
    spread = (own_MV - own_MV.mean(-1, keepdim=True)).norm().clamp_min(1e-12)
    return float(error_MV.norm() / spread)


def _most(lm: LanguageModel) -> float:
    return _MOST_EXACT if lm.compute_dtype in (torch.float32, torch.float64) else _MOST_ROUNDED


def _shares(lm: LanguageModel, kernels: Kernels, whole: bool) -> bool:
    """Whether rows that share the whole model, or its lower blocks, get the logits that they get without."""
    if not (whole or lm.blocks.lower):
        return False
    try:
        shared = Readers([0, 1, 0], whole)
        own_MV, shared_MV = (_logits_of_three(lm, kernels, readers).double() for readers in (None, shared))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        logger.info("the engine reads what prompts have in common row by row: %s", error)
        return False
    return _relative(shared_MV - own_MV, own_MV) <= _most(lm)


def _logits_of_three(lm: LanguageModel, kernels: Kernels, readers: Readers | None) -> Tensor:
    """After a piece that the first and the last of three rows read alike, and after one more token of each."""
    cache = RowCache(int(lm.text_config.num_hidden_layers), 1 << 10)
    cache.reserve(3, 8)
    windows = lm.architecture.windows(lm.text_config)
    vocabulary = int(lm.text_config.vocab_size)
    pieces = [[(3 + 7 * row + 5 * i) % vocabulary for i in range(6)] for row in (0, 1, 0)]
    read = partial(read_pieces, lm, cache, windows, slice(0, 3))
    first = read(pieces, [0] * 3, kernels, readers=readers)
    return torch.cat([first, read([[11 % vocabulary], [12 % vocabulary], [13 % vocabulary]], [6] * 3, kernels)])


def _piecewise_logits(lm: LanguageModel, rows: list[list[int]], kernels: Kernels) -> Tensor:
    """The engine's logits [M, V] at the end of each piece, the rows read together in pieces."""
    cache = RowCache(int(lm.text_config.num_hidden_layers), 1 << 10)
    cache.reserve(len(_CUTS), max(cuts[-1] for cuts in _CUTS))
    windows = lm.architecture.windows(lm.text_config)
    spans = [list(pairwise((0, *cuts))) for cuts in _CUTS]
    found: list[list[Tensor]] = [[] for _ in rows]
    for step in range(max(map(len, spans))):
        active = [row for row in range(len(rows)) if step < len(spans[row])]
        pieces = [rows[row][slice(*spans[row][step])] for row in active]
        starts = [spans[row][step][0] for row in active]
        # The longer row is the first, so that those still active are the first of the cache.
        scores = read_pieces(lm, cache, windows, slice(0, len(active)), pieces, starts, kernels)
        for row, score in zip(active, scores, strict=True):
            found[row].append(score)
    return torch.stack([score for scores in found for score in scores])


@contextmanager
def _short_window(lm: LanguageModel) -> Iterator[None]:
    """Inside the block, the layers that slide see `_SHORT_WINDOW` tokens."""
    # A model's modules may have configurations of their own beside the whole's.
    configs = {id(each): each for each in (lm.text_config, *(getattr(m, "config", None) for m in lm.model.modules()))}
    sliding = [(each, each.sliding_window) for each in configs.values() if getattr(each, "sliding_window", None)]
    try:
        for config, _ in sliding:
            config.sliding_window = _SHORT_WINDOW
        yield
    finally:
        for config, window in sliding:
            config.sliding_window = window
