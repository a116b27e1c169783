"""Decoding of one batch to its end: greedily, by the engine, and by given draws, by transformers' `generate`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingEvent, DecodingListener, DecodingRequest, Finished
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Update


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt and the updates it runs with, at most one in each subspace; without any the base model answers.

    A `raw` prompt is read as it is, without the model's chat template.
    """

    prompt: str
    updates: tuple[Update, ...] = ()
    max_new_tokens: int = 20
    raw: bool = False


@dataclass(frozen=True)
class Generation:
    """An answer and how many tokens its prompt had."""

    text: str
    prompt_tokens: int


def outcomes(
    engine: Engine, requests: Sequence[DecodingRequest], answered: Callable[[], None] = lambda: None
) -> list[Finished | Exception]:
    """Decode all to their ends by an engine that has nothing else to do: how each ended, in order.

    `answered` is called after each answer. Raises as `Engine.submit`, before anything is decoded.
    """
    ends: dict[int, Finished | Exception] = {}

    def listener(number: int) -> DecodingListener:
        def listen(event: DecodingEvent) -> None:
            if not isinstance(event, str):
                ends[number] = event
            if isinstance(event, Finished):
                answered()

        return listen

    for number, request in enumerate(requests):
        engine.submit(request, listener(number))
    while engine.step():
        pass
    return [ends[number] for number in range(len(requests))]


def decode_all(
    engine: Engine, requests: Sequence[DecodingRequest], answered: Callable[[], None] = lambda: None
) -> list[Finished]:
    """As `outcomes`, where each is to be an answer. All are decoded before an error is raised.

    Of several errors, it is that of the first request in order: which failed first in time depends on the batch.
    """
    found = []
    for outcome in outcomes(engine, requests, answered):
        if isinstance(outcome, Exception):
            raise outcome
        found.append(outcome)
    return found


def generate(lm: LanguageModel, requests: Sequence[GenerationRequest]) -> list[Generation]:
    """The greedy answers, in order, cut at the stop string, all decoded in one batch.

    Raises `PromptTooLong` if a prompt with its answer is longer than the model's context, and `ModelError` as `Engine`;
    of several errors while decoding, the one of `decode_all`.
    """
    if not requests:
        return []
    wanted = [DecodingRequest(each.prompt, each.updates, each.max_new_tokens, raw=each.raw) for each in requests]
    with closing(Engine(lm, max_rows=len(requests))) as engine:
        return [Generation(answer.text, answer.prompt_tokens) for answer in decode_all(engine, wanted)]


def check_fits(lm: LanguageModel, request: GenerationRequest, controls: bool = False) -> None:
    """Raise `PromptTooLong` if the prompt (read with its `controls`) and the longest answer exceed the context."""
    lm.check_length(len(lm.encode_prompt(request.prompt, request.raw, controls)), request.max_new_tokens)


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
    prompts: Sequence[Sequence[int]],
    draws_NT: Tensor,
    temperature: float,
    top_p: float,
    done: Callable[[str], bool],
    top_k: int = 0,
) -> list[Sampled]:
    """One continuation of each prompt, of at most T tokens, in order; a row ends when its text satisfies `done`.

    Prompts are token ids. A token is drawn from the `top_k` most likely ones (0: all), and of those from the ones that
    make up `top_p` of the probability. The caller ensures that each prompt and T more tokens fit the model's context.

    Chance is an argument, so what a row draws does not depend on its batch: its tokens are chosen by inverting its
    cumulative distribution at the row's own numbers. The same prompt with the same numbers gives the same text in any
    batch, up to the rounding of the logits: a batch of another shape may differ in the last bits, and with them a draw
    on the border between two tokens (about one in a million in float32; in bfloat16 the logits are coarser).
    """
    # Not by the engine, which draws for one row after the other, on the CPU: here a batch has hundreds of rows, and
    # their tokens are drawn at once on the device.
    if not prompts:
        return []
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(temperature)]
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    processors.append(_Draw(draws_NT.to(lm.device), max(map(len, prompts))))
    found = []
    for row in _generate_ids(lm, prompts, draws_NT.shape[1], done, processors):
        text, ended = _decode(lm, row)
        found.append(Sampled(text, ended or done(text)))
    return found


class _Draw(LogitsProcessor):
    """Leaves one token of each row: the first at which the cumulative distribution exceeds the row's number."""

    def __init__(self, draws_NT: Tensor, start: int) -> None:
        self._draws_NT = draws_NT
        self._start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative_NV = scores.double().softmax(-1).cumsum(-1)
        numbers_N1 = self._draws_NT[:, input_ids.shape[1] - self._start, None] * cumulative_NV[:, -1:]
        chosen = torch.searchsorted(cumulative_NV, numbers_N1, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _generate_ids(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    done: Callable[[str], bool],
    processors: Sequence[LogitsProcessor],
) -> list[list[int]]:
    """What transformers writes after each prompt; greedy, so that processors which leave one token decide alone."""
    length = max(len(prompt) for prompt in prompts)
    # Padded on the left, so that all prompts end at the same place.
    ids_NT = torch.full((len(prompts), length), lm.pad_id)
    mask_NT = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_NT[row, length - len(prompt) :] = torch.tensor(prompt)
        mask_NT[row, length - len(prompt) :] = 1
    output = lm.model.generate(  # type: ignore[operator]
        ids_NT.to(lm.device),
        attention_mask=mask_NT.to(lm.device),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(lm.end_ids) or None,
            pad_token_id=lm.pad_id,
        ),
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList([_StopWhen(lm, length, done)]),
    )
    rows: list[list[int]] = output[:, length:].tolist()
    return rows


class _StopWhen(StoppingCriteria):
    """A row is done when its text so far satisfies `done` (transformers' own re-reads the vocabulary each call)."""

    def __init__(self, lm: LanguageModel, prompt_length: int, done: Callable[[str], bool]) -> None:
        self._lm = lm
        self._start = prompt_length
        self._done = done

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are done [N]."""
        texts = self._lm.tokenizer.batch_decode(input_ids[:, self._start :], skip_special_tokens=True)
        return torch.tensor([self._done(text) for text in texts], device=input_ids.device)


def _decode(lm: LanguageModel, ids: list[int]) -> tuple[str, bool]:
    """The text before one of the model's end tokens, and whether there was one."""
    ends = [ids.index(end) for end in lm.end_ids if end in ids]
    return str(lm.tokenizer.decode(ids[: min(ends, default=len(ids))], skip_special_tokens=True)), bool(ends)
