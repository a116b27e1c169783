"""Sampling in which the chance is an argument: what a row draws does not depend on the batch that it is in.

A row's tokens are chosen by inverting its cumulative distribution at numbers that the caller gives, one a token. So
the same prompt with the same numbers gives the same text in any batch, up to the rounding of the logits: a batch of
another shape may differ in the last bits, and with them a draw that falls on the border between two tokens (about
one in a million in float32; in bfloat16 the logits themselves are coarser).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from regrad.inference.decoding import StopWhen, left_pad
from regrad.models.loading import LanguageModel


@dataclass(frozen=True)
class Sampled:
    """A continuation, and whether it came to its end (the stop condition or the model's end token)."""

    text: str
    complete: bool


def draws(key: str, rows: int, tokens: int) -> Tensor:
    """Uniform numbers in [0, 1) [rows, tokens] that depend on `key` alone, the same on every machine."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.inference_mode()
def sample(
    lm: LanguageModel,
    prompts: Sequence[str],
    draws_NT: Tensor,
    temperature: float,
    top_p: float,
    done: Callable[[str], bool],
    top_k: int = 0,
) -> list[Sampled]:
    """One continuation a prompt, of at most T tokens, in order; a row ends when its text satisfies `done`.

    Of the `top_k` most likely tokens (0: all), then of those that make up `top_p` of the probability.

    The caller sees to it that each prompt and T more tokens fit the model's context.
    """
    if not prompts:
        return []
    ids, mask = left_pad([lm.bos + lm.encode(prompt, controls=True) for prompt in prompts], lm.pad_id)
    start = ids.shape[1]
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    output = lm.model.generate(  # type: ignore[operator]
        ids.to(lm.device),
        attention_mask=mask.to(lm.device),
        generation_config=_settings(lm, draws_NT.shape[1]),
        logits_processor=LogitsProcessorList([*warpers, _Draw(draws_NT.to(lm.device), start)]),
        stopping_criteria=StoppingCriteriaList([StopWhen(lm, start, done)]),
    )
    return [_sampled(lm, row, done) for row in output[:, start:].tolist()]


class _Draw(LogitsProcessor):
    """Leaves one token of each row: the first at which the cumulative distribution exceeds the row's number."""

    def __init__(self, draws_NT: Tensor, start: int) -> None:
        self._draws, self._start = draws_NT, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative_NV = scores.double().softmax(-1).cumsum(-1)
        numbers_N1 = self._draws[:, input_ids.shape[1] - self._start, None] * cumulative_NV[:, -1:]
        chosen = torch.searchsorted(cumulative_NV, numbers_N1, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _settings(lm: LanguageModel, max_new_tokens: int) -> GenerationConfig:
    """Greedy over scores in which one token is left."""
    settings: dict[str, Any] = {"eos_token_id": list(lm.end_ids) or None, "pad_token_id": lm.pad_id}
    return GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, **settings)


def _sampled(lm: LanguageModel, ids: list[int], done: Callable[[str], bool]) -> Sampled:
    ends = [ids.index(end) for end in lm.end_ids if end in ids]
    text = str(lm.tokenizer.decode(ids[: min(ends, default=len(ids))], skip_special_tokens=True))
    return Sampled(text, bool(ends) or done(text))
