"""Short requests in groups: a call between deployments costs as much as a short answer, so one call takes several.

A group leaves at once if few are under way; else requests gather while the one before looks for its passages. The
generator gives back each answer when it is done. Who leaves early costs the decoding of a short answer at most; long
answers go alone (`Stages.once`), and so does each request of a group that failed as a whole.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from regrad.methods.registry import get_method
from serve_app.config import GroupConfig
from serve_app.messages import Answered, Ask, LoadRequest, Release, Retrieved, SearchRequest
from serve_app.pipeline import LOAD_FRACTION, Stages

logger = logging.getLogger("ray.serve")

Outcome = tuple[Retrieved | None, Answered]


@dataclass
class _Member:
    ask: Ask
    release: Release
    outcome: asyncio.Future[Outcome | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def search(self) -> SearchRequest | None:
        """What the retriever is asked, if anything."""
        ask = self.ask
        retrieves = get_method(ask.method).retrieves
        return SearchRequest(ask.question, ask.k, ask.passage_ids, ask.traceparent) if retrieves else None

    @property
    def load(self) -> LoadRequest | None:
        """What the bank loader is asked, if anything."""
        ask, method = self.ask, get_method(self.ask.method)
        if not method.applies_gradients:
            return None
        parts, atoms = ask.contributions is not None, not method.computes_gradients
        return LoadRequest(self.release, parts, LOAD_FRACTION * ask.seconds, ask.traceparent, atoms)

    def settle(self, outcome: Outcome | Exception | None) -> None:
        """Tell who waits; None: it has to go alone."""
        if self.outcome.done():
            return
        if isinstance(outcome, Exception):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


class Groups:
    """Answers requests in groups through the three deployments."""

    def __init__(
        self,
        config: GroupConfig,
        stages: Stages,
        handles: tuple[DeploymentHandle, DeploymentHandle, DeploymentHandle],
    ) -> None:
        self._config, self._stages = config, stages
        self._retriever, self._bank_loader, generator = handles
        self._generator = generator.options(stream=True)
        self._waiting: list[_Member] = []
        self._searching = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def once(self, ask: Ask, release: Release, last: bool) -> Outcome:
        """As `Stages.once`."""
        if ask.sampling.max_new_tokens > self._config.max_new_tokens:
            return await self._stages.once(ask, release, last)
        member = _Member(ask, release)
        self._waiting.append(member)
        self._leave()
        outcome = await member.outcome
        return outcome if outcome is not None else await self._stages.once(ask, release, last)

    def _leave(self) -> None:
        """Send off whoever waits, as long as not too many groups are looking for passages."""
        while self._waiting and self._searching < self._config.at_once:
            size = self._config.max_size
            group, self._waiting = self._waiting[:size], self._waiting[size:]
            group = [member for member in group if not member.outcome.done()]
            if group:
                self._searching += 1
                task = asyncio.create_task(self._travel(group))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _travel(self, group: list[_Member]) -> None:
        searching, calls = True, list[Any]()
        try:
            calls = self._calls(group)
            retrieved = await calls[0] if calls[0] is not None else [None] * len(group)
            searching = self._arrived(searching)
            async for finished in calls[-1]:
                for number, answered in finished:
                    failed = isinstance(answered, Exception)
                    group[number].settle(answered if failed else (retrieved[number], answered))
                if all(member.outcome.done() for member in group):
                    break
        except BackPressureError as error:  # going alone would only add to the load
            for member in group:
                member.settle(error)
        except Exception as error:
            logger.warning("a group of %d requests failed, they go on alone: %s", len(group), type(error).__name__)
        finally:
            self._arrived(searching)
            for call in calls:
                if call is not None:
                    call.cancel()  # of what is done already, nothing
            for member in group:
                member.settle(None)

    def _arrived(self, searching: bool) -> bool:
        if searching:
            self._searching -= 1
            self._leave()
        return False

    def _calls(self, group: list[_Member]) -> list[Any]:
        """The calls of the three stages, each given the ones before un-awaited: the first (or None) and the last."""
        searches, loads = [member.search for member in group], [member.load for member in group]
        found = self._retriever.many.remote(searches) if any(searches) else None
        sums = self._bank_loader.many.remote(found, loads) if any(loads) else None
        asks, releases = [member.ask for member in group], [member.release for member in group]
        return [found, self._generator.many.remote(asks, found, sums, releases)]
