"""Running an engine in tests: requests that come in at given steps, and what each was told."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regrad.inference.engine import DecodingLoop, Engine
from regrad.inference.rows import DecodingEvent, DecodingRequest, Finished
from regrad.models.config import ActsOn
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace, Update

PROMPTS = [
    "Question: Where was Les Dripen born?\nAnswer:",
    "a",
    "Passage: Ada\n Ada was born in London and lived there for a long time.\nQuestion: Who?\nAnswer:",
    "The quick brown fox",
    "Question: What is the occupation of Drax Gutror?\nAnswer:",
]


@dataclass
class Heard:
    """A listener that remembers."""

    pieces: list[str] = field(default_factory=list)
    finished: Finished | None = None
    error: Exception | None = None

    def __call__(self, event: Any) -> None:
        assert self.finished is None and self.error is None, f"told {event!r} after the end"
        if isinstance(event, Finished):
            self.finished = event
        elif isinstance(event, Exception):
            self.error = event
        else:
            self.pieces.append(event)

    @property
    def is_over(self) -> bool:
        return self.finished is not None or self.error is not None

    @property
    def text(self) -> str:
        if self.error:
            raise self.error
        assert self.finished is not None
        assert "".join(self.pieces) == self.finished.text
        return self.finished.text


def run(engine: Engine, requests: Sequence[DecodingRequest], steps: Sequence[int] | None = None) -> list[Heard]:
    """All requests to their end; request i comes in before step `steps[i]` (all at first without)."""
    steps = steps or [0] * len(requests)
    heard = [Heard() for _ in requests]
    number = 0
    while not all(item.is_over for item in heard):
        for request, listener, at in zip(requests, heard, steps, strict=True):
            if at == number:
                engine.submit(request, listener)
        engine.step()
        number += 1
        assert number < 2000
    return heard


def alone(lm: LanguageModel, request: DecodingRequest) -> str:
    return run(Engine(lm), [request])[0].text


def answered(loop: DecodingLoop, request: DecodingRequest) -> Finished:
    """The loop's answer, waited for."""
    answer: Future[Finished] = Future()

    def listen(event: DecodingEvent) -> None:
        if isinstance(event, Exception):
            answer.set_exception(event)
        elif isinstance(event, Finished):
            answer.set_result(event)

    loop.submit(request, listen)
    return answer.result()


def vector(updates: tuple[Update, ...]) -> Tensor | None:
    """That of the only update, or None if there is none."""
    return updates[0].vector if updates else None


def update(
    lm: LanguageModel,
    seed: int,
    scale: float = 0.3,
    subspace: Subspace | None = None,
    acts_on: ActsOn = "everything",
) -> tuple[Update, ...]:
    """A random one, in the model's own subspace if no other is given."""
    subspace = subspace or lm.subspace
    vector_P = scale * torch.randn(subspace.size, generator=torch.Generator().manual_seed(seed))
    return subspace.updates(vector_P, acts_on)


@torch.no_grad()
def recomputed(
    lm: LanguageModel, prompt: str, updates: Sequence[Update], most: int, raw: bool = False, stop: str = ""
) -> str:
    """The greedy answer, all of prompt and answer read again for each token, each update on the tokens it acts on."""
    ids = lm.encode_prompt(prompt, raw) or [lm.pad_id]
    start = len(ids)
    while len(ids) < start + most:
        positions = torch.arange(len(ids), device=lm.device)[None]
        with ExitStack() as stack:
            for each in updates:
                acting = positions >= (start - 1 if each.acts_on == "answer" else 0)
                stack.enter_context(lm.lora_for(each.subspace).applied(each.vector.to(lm.device), acting))
            logits_NTV = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits
        token = int(logits_NTV[0, -1].argmax())
        if token in lm.end_ids:
            break
        ids.append(token)
    text = str(lm.tokenizer.decode(ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    text = text.lstrip()
    return (text.split(stop)[0] if stop else text).rstrip()
