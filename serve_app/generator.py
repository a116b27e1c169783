"""Deployment: answers batches of questions, each under its own update. The weights are never written."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from ray import serve

from regrad.config import ServeConfig
from regrad.language_model.decoding import GenerationRequest, generate
from regrad.language_model.loading import load_language_model
from regrad.meta_init import MetaInit
from regrad.methods import get_method
from serve_app.messages import Answered, GradientSum, Question, Retrieved


@dataclass(frozen=True)
class _Waiting:
    question: Question
    retrieved: Retrieved | None
    gradients: GradientSum | None
    arrived: float


class GeneratorDeployment:
    """One language model and its MetaInit; requests that wait are gathered into one decoding batch."""

    def __init__(self, config: ServeConfig) -> None:
        self._meta_init = MetaInit.load(config.meta_init)
        self._lm = load_language_model(self._meta_init.model_at(config.model_path))
        self._meta_init.check_base(self._lm)
        self._decoding = asyncio.Lock()
        self._answer_batch.set_max_batch_size(config.batch.max_size)
        self._answer_batch.set_batch_wait_timeout_s(config.batch.wait_seconds)

    async def answer(self, question: Question, retrieved: Retrieved | None, gradients: GradientSum | None) -> Answered:
        """One answer; raises `ModelError` if the prompt does not fit the model's context."""
        waiting = _Waiting(question, retrieved, gradients, time.perf_counter())
        answered: Answered | Exception = await self._answer_batch(waiting)
        if isinstance(answered, Exception):
            raise answered
        return answered

    async def weights_digest(self) -> str:
        """SHA-256 of the base weights as they are in memory now."""
        return await asyncio.to_thread(self._lm.identity)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def _answer_batch(self, batch: list[_Waiting]) -> list[Answered | Exception]:
        async with self._decoding:
            return await asyncio.to_thread(self._decode, batch)

    def _decode(self, batch: list[_Waiting]) -> list[Answered | Exception]:
        started = time.perf_counter()
        requests = [self._request(waiting) for waiting in batch]
        generations = generate(self._lm, requests)
        milliseconds = (time.perf_counter() - started) * 1e3
        return [
            Answered(
                generation.text,
                generation.prompt_tokens,
                waiting.gradients.bank_version if waiting.gradients else None,
                waiting.gradients.milliseconds if waiting.gradients else 0.0,
                (started - waiting.arrived) * 1e3,
                milliseconds,
                len(batch),
            )
            for waiting, generation in zip(batch, generations, strict=True)
        ]

    def _request(self, waiting: _Waiting) -> GenerationRequest:
        question, gradients = waiting.question, waiting.gradients
        passages = [hit.passage for hit in waiting.retrieved.hits] if waiting.retrieved else []
        prompt = get_method(question.method).prompt(self._lm.config.prompts, question.text, passages)
        update = self._meta_init.update(gradients.total.float(), question.gamma) if gradients else None
        return GenerationRequest(prompt, update, question.max_new_tokens)
