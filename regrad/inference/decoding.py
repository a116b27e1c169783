"""Greedy decoding of a batch in which every request has its own updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace, Update, by_subspace


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt and the updates it runs with, at most one in each subspace; the base model answers without any.

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


@torch.inference_mode()
def generate(lm: LanguageModel, requests: Sequence[GenerationRequest]) -> list[Generation]:
    """The answers, in order, cut at the stop string. One batch, whatever the updates; the weights are not touched.

    Raises `PromptTooLong` if a prompt with its answer is longer than the model's context.
    """
    if not requests:
        return []
    prompts = [lm.encode_prompt(request.prompt, request.raw) for request in requests]
    for prompt, request in zip(prompts, requests, strict=True):
        lm.check_length(len(prompt), request.max_new_tokens)
    ids, mask = left_pad(prompts, lm.pad_id)
    with lm.applied(_stack_updates(lm, requests)):
        output = lm.model.generate(  # type: ignore[operator]
            ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            generation_config=_greedy(lm, max(request.max_new_tokens for request in requests)),
            stopping_criteria=StoppingCriteriaList([StopWhen(lm, ids.shape[1], _has_stop(lm))]),
        )
    rows = output[:, ids.shape[1] :].tolist()
    texts = [_answer(lm, row[: request.max_new_tokens]) for row, request in zip(rows, requests, strict=True)]
    return [Generation(text, len(prompt)) for text, prompt in zip(texts, prompts, strict=True)]


def _greedy(lm: LanguageModel, max_new_tokens: int) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(lm.end_ids) or None,
        pad_token_id=lm.pad_id,
    )


class StopWhen(StoppingCriteria):
    """A row is done when its text so far satisfies `done` (transformers' own re-reads the vocabulary each call)."""

    def __init__(self, lm: LanguageModel, prompt_length: int, done: Callable[[str], bool]) -> None:
        self._lm, self._start, self._done = lm, prompt_length, done

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are done [N]."""
        texts = self._lm.tokenizer.batch_decode(input_ids[:, self._start :], skip_special_tokens=True)
        return torch.tensor([self._done(text) for text in texts], device=input_ids.device)


def _has_stop(lm: LanguageModel) -> Callable[[str], bool]:
    return lambda text: lm.config.prompts.stop in text.lstrip()


def _answer(lm: LanguageModel, ids: list[int]) -> str:
    for end in lm.end_ids:
        ids = ids[: ids.index(end)] if end in ids else ids
    text = str(lm.tokenizer.decode(ids, skip_special_tokens=True)).lstrip()
    return text.split(lm.config.prompts.stop)[0].strip()


def _stack_updates(lm: LanguageModel, requests: Sequence[GenerationRequest]) -> dict[Subspace, Tensor]:
    """[N, P] in each subspace in use; a request without an update in it gets zeros, for which B A x is zero."""
    vectors = [by_subspace(request.updates) for request in requests]
    stacked = {}
    for subspace in dict.fromkeys(subspace for each in vectors for subspace in each):
        blank = torch.zeros(subspace.size)
        stacked[subspace] = torch.stack([each.get(subspace, blank).float().cpu() for each in vectors]).to(lm.device)
    return stacked


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids [N, T] that all end with their prompt, and the mask [N, T] of what is not padding."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad_id)
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def check_fits(lm: LanguageModel, request: GenerationRequest, controls: bool = False) -> None:
    """Raise `PromptTooLong` if the prompt (read with its `controls`) and the longest answer exceed the context."""
    lm.check_length(len(lm.encode_prompt(request.prompt, request.raw, controls)), request.max_new_tokens)
