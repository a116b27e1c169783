"""Deployment: answers batches of questions, each under its own update. The weights are never written."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import ray

from regrad.config import ServeConfig
from regrad.errors import BankError, FingerprintMismatch, ModelError
from regrad.language_model.decoding import Generation, GenerationRequest, check_fits, generate
from regrad.language_model.loading import load_language_model
from regrad.meta_init import MetaInit
from regrad.methods import get_method
from serve_app.batching import Batcher
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
        self._lm = load_language_model(
            self._meta_init.model_at(config.model_path), "cuda" if ray.get_gpu_ids() else "cpu"
        )
        self._meta_init.check_base(self._lm)
        self._batcher = Batcher(self._decode, config.batch.max_size, config.batch.wait_seconds)

    async def answer(self, question: Question, retrieved: Retrieved | None, gradients: GradientSum | None) -> Answered:
        """One answer; raises `ModelError` if the prompt does not fit the model's context."""
        return await self._batcher.submit(_Waiting(question, retrieved, gradients, time.perf_counter()))

    async def weights_digest(self) -> str:
        """SHA-256 of the base weights as they are in memory now."""
        return await asyncio.to_thread(self._lm.identity)

    def _decode(self, batch: list[_Waiting]) -> list[Answered | Exception]:
        started = time.perf_counter()
        prepared = [self._prepare(waiting) for waiting in batch]
        requests = [request for request in prepared if isinstance(request, GenerationRequest)]
        generations = iter(generate(self._lm, requests))
        milliseconds = (time.perf_counter() - started) * 1e3
        return [
            request
            if isinstance(request, Exception)
            else _answered(waiting, next(generations), started, milliseconds, len(requests))
            for waiting, request in zip(batch, prepared, strict=True)
        ]

    def _prepare(self, waiting: _Waiting) -> GenerationRequest | Exception:
        """The request as the model gets it, or why it cannot: one bad request must not fail its whole batch."""
        question, gradients = waiting.question, waiting.gradients
        passages = [hit.passage for hit in waiting.retrieved.hits] if waiting.retrieved else []
        prompt = get_method(question.method).prompt(self._lm.config.prompts, question.text, passages)
        if gradients and gradients.total.shape != self._meta_init.phi0.shape:
            return BankError(f"the bank's sums have {len(gradients.total)} numbers, not {len(self._meta_init.phi0)}")
        if gradients and gradients.fingerprint != self._meta_init.fingerprint:
            return FingerprintMismatch(gradients.fingerprint, self._meta_init.fingerprint)
        update = self._meta_init.update(gradients.total.float(), question.gamma) if gradients else None
        request = GenerationRequest(prompt, update, question.max_new_tokens)
        try:
            check_fits(self._lm, request)
        except ModelError as error:
            return error
        return request


def _answered(
    waiting: _Waiting, generation: Generation, started: float, milliseconds: float, batch_size: int
) -> Answered:
    gradients = waiting.gradients
    return Answered(
        text=generation.text,
        prompt_tokens=generation.prompt_tokens,
        bank_version=gradients.bank_version if gradients else None,
        load_milliseconds=gradients.milliseconds if gradients else 0.0,
        queue_milliseconds=(started - waiting.arrived) * 1e3,
        generate_milliseconds=milliseconds,
        batch_size=batch_size,
    )
