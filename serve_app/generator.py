"""Deployment: one language model that answers many questions at once, each under its own update."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import ray
import torch
from torch import Tensor

from regrad.data.questions import Question
from regrad.errors import RegradError
from regrad.inference.engine import DecodingLoop, Engine
from regrad.inference.rows import DecodingEvent, DecodingRequest, Finished
from regrad.meta_init import MetaInit
from regrad.methods.base import BankNeed, Plan
from regrad.methods.demonstrations import DemonstrationPool
from regrad.methods.one_by_one import ReplyReader
from regrad.methods.policies import PromptFitter
from regrad.methods.regrad import BoundMetaInit
from regrad.models.loading import load_language_model
from serve_app.config import ServeConfig
from serve_app.messages import Answered, Ask, GradientSum, Piece, Release, Retrieved, RoutedAsk
from serve_app.methods import (
    Prepared,
    RequestBuilder,
    demonstrations_of,
    offers_of,
    open_own,
    searches_demonstrations,
)
from serve_app.observability import InHand, Watch
from serve_app.rollout import opened_ahead

logger = logging.getLogger("ray.serve")
T = TypeVar("T")

_RELEASES = 4
_STALL_SECONDS = 300.0
_READ_TOKENS = 2048  # in one pass of reading, during which nothing is decoded


def model_devices() -> list[str]:
    """Where the base model is: on the CPU, on the replica's GPU, or split over all that it was given."""
    # Ray shows a process only the GPUs that it was given, numbered from 0.
    return [f"cuda:{number}" for number in range(len(ray.get_gpu_ids()))] or ["cpu"]


class GeneratorDeployment:
    """The base model of the configured MetaInit, shared by all releases: each has a MetaInit on this base."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        first = MetaInit.load(config.meta_init)
        self._lm = load_language_model(first.model_at(config.model_path), model_devices())
        batch = config.batch
        engine = Engine(
            self._lm,
            batch.max_size,
            batch.max_cached_tokens,
            batch.prefill_tokens,
            draft_tokens=batch.draft_tokens,
            prefix_bytes=batch.prefix_bytes,
        )
        self._loop = DecodingLoop(engine)
        self._offers = offers_of(config)
        self._pool = DemonstrationPool(demonstrations_of(config), searches_demonstrations(config))
        self._own = open_own(self._offers, self._lm)
        self._builders: OrderedDict[str, RequestBuilder] = OrderedDict()
        self._keep(self._open_builder(first))
        opened_ahead(config, self._open_now)
        self._watch = Watch(config.watching, "generator")
        self._in_hand = InHand()
        self._lock = asyncio.Lock()

    async def answer(
        self,
        routed: Sequence[RoutedAsk],
        retrieved: Sequence[Retrieved | Exception | None] | None,
        gradients: Sequence[GradientSum | None] | None,
    ) -> AsyncGenerator[list[tuple[int, Answered | Exception]]]:
        """Answers (or errors) by the number of their request, as they are done.

        `retrieved` and `gradients` are None if their deployment was not asked.
        """
        found = retrieved or [None] * len(routed)
        sums = gradients or [None] * len(routed)
        tasks = [asyncio.create_task(self._answer_one(*each)) for each in zip(routed, found, sums, strict=True)]
        numbers = {task: number for number, task in enumerate(tasks)}
        left = set(tasks)
        try:
            with self._in_hand.call(len(routed)):
                while left:
                    done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                    yield [(numbers[task], task.result()) for task in done]
        finally:
            for task in left:
                task.cancel()

    async def _answer_one(
        self, routed: RoutedAsk, found: Retrieved | Exception | None, total: GradientSum | None
    ) -> Answered | Exception:
        # Errors are values here: those of one request must not fail the others of its micro-batch.
        if isinstance(found, Exception):
            return found
        try:
            async with contextlib.aclosing(self._events(routed, found, total)) as events:
                return [event async for event in events if isinstance(event, Answered)][-1]
        except (RegradError, TimeoutError) as error:
            return error
        except Exception as error:
            logger.exception("request %s failed", routed.ask.request_id)  # its traceback does not travel
            return error

    async def stream(
        self,
        routed: Sequence[RoutedAsk],
        retrieved: Sequence[Retrieved | Exception | None] | None,
        gradients: Sequence[GradientSum | None] | None,
    ) -> AsyncGenerator[Piece | Answered]:
        """One request: pieces of text as they come, and the answer.

        Raises what `RequestBuilder.prepare` raises. Closing the stream takes the request out of the batch.
        """
        (only,) = routed
        (found,) = retrieved or [None]
        (total,) = gradients or [None]
        if isinstance(found, Exception):
            raise found
        with self._in_hand.call(1):
            async with contextlib.aclosing(self._events(only, found, total)) as events:
                async for event in events:
                    yield event

    async def open(self, releases: Sequence[Release]) -> None:
        """Open the MetaInits of these, before a question comes; raises `MetaInitError`."""
        for release in releases:
            await self._builder(release)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve asks a replica for: see `replicas_for_questions`."""
        return self._in_hand.averages()

    async def _events(
        self, routed: RoutedAsk, retrieved: Retrieved | None, gradients: GradientSum | None
    ) -> AsyncGenerator[Piece | Answered]:
        ask = routed.ask
        arrived = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + ask.seconds  # one: what a phase has taken, the next ones lack
        if gradients is None and retrieved is not None and routed.bank is not BankNeed.NOTHING:
            gradients = GradientSum.unread(retrieved, routed.release, "the bank loader is gone")
        with self._watch.span("generate", ask.traceparent, method=ask.method):
            builder = await self._builder(routed.release)
            shown = await self._demonstrations(builder, ask, deadline)
            if builder.opened(ask).offer.settings.one_by_one is not None and retrieved is not None and retrieved.hits:
                finished, plan, seconds = await self._one_by_one(builder, ask, retrieved, gradients, shown, deadline)
                yield Piece(finished.text)
                yield self._answered(finished, plan, gradients, routed.release, 1e3 * seconds)
                return
            prepared = await self._prepared(builder, ask, retrieved, gradients, shown, deadline)
            preparing_milliseconds = (time.perf_counter() - arrived) * 1e3
            async with contextlib.aclosing(self._decode(prepared.request, deadline)) as events:
                async for event in events:
                    if isinstance(event, str):
                        yield Piece(event)
                        continue
                    finished = event
                    plan = prepared.plan
                    if ask.contributions:
                        # On the decoding thread, which alone may run the model.
                        measured = self._loop.run(partial(builder.contributions, ask, prepared, finished))
                        async with asyncio.timeout_at(deadline):
                            plan = replace(plan, uses=await asyncio.wrap_future(measured))
                    yield self._answered(finished, plan, gradients, routed.release, preparing_milliseconds)

    def _answered(
        self,
        finished: Finished,
        plan: Plan,
        gradients: GradientSum | None,
        release: Release,
        preparing_milliseconds: float,
    ) -> Answered:
        metrics = self._watch.metrics
        metrics.batch(finished.largest_batch)
        metrics.prefix(finished.given_tokens, self._loop.prefix_bytes)
        metrics.queue(self._loop.load[0])
        return _answered(finished, plan, gradients, release, preparing_milliseconds)

    async def _one_by_one(
        self,
        builder: RequestBuilder,
        ask: Ask,
        retrieved: Retrieved,
        gradients: GradientSum | None,
        shown: tuple[Question, ...],
        deadline: float,
    ) -> tuple[Finished, Plan, float]:
        """An answer with each passage alone, all decoded at once, then the best; and the seconds before decoding."""
        began = time.perf_counter()
        parts = [replace(retrieved, hits=(hit,)) for hit in retrieved.hits]
        sums = [None] * len(parts) if gradients is None else gradients.apart()
        pairs = zip(parts, sums, strict=True)
        async with asyncio.timeout_at(deadline):
            prepared = await _all(self._prepared(builder, ask, part, total, shown, deadline) for part, total in pairs)
            seconds = time.perf_counter() - began
            answers = await _all(self._whole(one.request, deadline) for one in prepared)
            texts = builder.texts_to_read(ask, answers)
            read = [await self._read(builder, ask, prepared, text) for text in texts]
        return *builder.chosen(ask, retrieved, prepared, answers, read), seconds

    async def _read(self, builder: RequestBuilder, ask: Ask, prepared: Sequence[Prepared], text: str) -> Tensor:
        """The text's likelihood with each passage [K]: on the decoding thread, which alone may run the model, and pass
        by pass, so that others go on in between."""
        found_K = torch.empty(len(prepared))
        for reading in builder.readings(prepared, text):
            likelihood_n: Tensor = await asyncio.wrap_future(self._loop.run(partial(builder.read, ask, reading)))
            found_K[list(reading.places)] = likelihood_n
        return found_K

    async def _whole(self, request: DecodingRequest, deadline: float) -> Finished:
        async with contextlib.aclosing(self._decode(request, deadline)) as events:
            return [event async for event in events if isinstance(event, Finished)][-1]

    async def _demonstrations(self, builder: RequestBuilder, ask: Ask, deadline: float) -> tuple[Question, ...]:
        if not builder.opened(ask).offer.settings.searches_demonstrations:
            return builder.demonstrations(ask)
        async with asyncio.timeout_at(deadline):
            return await asyncio.to_thread(builder.demonstrations, ask)

    async def _prepared(
        self,
        builder: RequestBuilder,
        ask: Ask,
        retrieved: Retrieved | None,
        gradients: GradientSum | None,
        shown: tuple[Question, ...],
        deadline: float,
    ) -> Prepared:
        """The request, made where its plan can be made: between decoding steps, in a thread, or right here."""
        async with asyncio.timeout_at(deadline):
            read = None
            if waits := builder.opened(ask).waits:  # for a bank: all who are decoded would wait with it
                read = await asyncio.to_thread(builder.read_atoms, ask, retrieved)
            prepare = partial(builder.prepare, ask, retrieved, gradients, shown, read)
            if builder.needs_model(ask, gradients, read):
                return await asyncio.wrap_future(self._loop.run(prepare))
            return await asyncio.to_thread(prepare) if waits else prepare()

    async def _decode(self, request: DecodingRequest, deadline: float) -> AsyncGenerator[str | Finished]:
        here = asyncio.get_running_loop()
        heard: asyncio.Queue[DecodingEvent] = asyncio.Queue()

        def hear(event: DecodingEvent) -> None:  # called on the decoding thread
            here.call_soon_threadsafe(heard.put_nowait, event)

        ticket = self._loop.submit(request, hear)
        try:
            while True:
                event = await asyncio.wait_for(heard.get(), deadline - here.time())
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            ticket.cancel()

    async def _builder(self, release: Release) -> RequestBuilder:
        """What makes requests at the release's MetaInit, which is loaded now if it came after this replica."""
        if release.fingerprint in self._builders:
            self._builders.move_to_end(release.fingerprint)
            return self._builders[release.fingerprint]
        async with self._lock:
            if release.fingerprint not in self._builders:  # another request may have loaded it while this one waited
                self._keep(await asyncio.to_thread(lambda: self._open_builder(MetaInit.load(release.meta_init))))
        return self._builders[release.fingerprint]

    def _open_now(self, release: Release) -> None:
        if release.fingerprint not in self._builders:
            self._keep(self._open_builder(MetaInit.load(release.meta_init)))

    def _keep(self, builder: RequestBuilder) -> None:
        """Keep it, and drop the one that was not used for longest if there are too many."""
        self._builders[builder.fingerprint] = builder
        while len(self._builders) > _RELEASES:
            self._builders.popitem(last=False)

    def _open_builder(self, meta_init: MetaInit) -> RequestBuilder:
        bound = BoundMetaInit(self._lm, meta_init)
        fitter = PromptFitter(self._lm, meta_init.model.prompts, self._config.on_overflow)
        reader = ReplyReader(self._lm, meta_init.model.prompts, _READ_TOKENS)
        return RequestBuilder(bound, fitter, self._offers, self._own, self._pool, reader)

    async def weights_digest(self) -> str:
        """SHA-256 of the base weights as they are in memory now."""
        return await asyncio.wrap_future(self._loop.run(self._lm.identity))

    async def check_health(self) -> None:
        """Raises if decoding has ended or hangs, so that Serve replaces the replica."""
        self._loop.check(_STALL_SECONDS)


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results in order; the first error ends them all."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _answered(
    finished: Finished,
    plan: Plan,
    gradients: GradientSum | None,
    release: Release,
    preparing_milliseconds: float,
) -> Answered:
    return Answered(
        text=finished.text,
        finish_reason=finished.reason,
        prompt_tokens=finished.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        bank_version=gradients.bank_version if gradients else None,
        release=release.name,
        uses=plan.uses,
        degraded=plan.notes,
        load_milliseconds=(gradients.milliseconds if gradients else 0.0) + preparing_milliseconds,
        queue_milliseconds=finished.queue_milliseconds,
        prefill_milliseconds=finished.prefill_milliseconds,
        decode_milliseconds=finished.decode_milliseconds,
        batch_size=finished.largest_batch,
    )
