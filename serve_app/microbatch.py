"""Short requests in micro-batches: a call between deployments costs as much as a short answer, so one takes several.

A micro-batch leaves at once if few are under way; else requests gather while the one before looks for its passages.
Each answer comes back when it is done. A client that leaves early costs the decoding of a short answer at most; long
answers go alone, and so does each request of a micro-batch that failed as a whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from ray.serve.exceptions import BackPressureError

from serve_app.config import GroupConfig
from serve_app.messages import Reply, RoutedAsk

logger = logging.getLogger("ray.serve")

Together = Callable[[Sequence[RoutedAsk], Callable[[], None]], AsyncGenerator[tuple[int, Reply | Exception]]]
"""Answers several requests by the same calls, each reply (or error) with its request's number, as they are done. Calls
its second argument when the passages have arrived."""


@dataclass
class _Member:
    routed: RoutedAsk
    reply: asyncio.Future[Reply | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def settle(self, reply: Reply | Exception | None) -> None:
        """Tell the client's task; None: it has to go alone."""
        if self.reply.done():
            return
        if isinstance(reply, Exception):
            self.reply.set_exception(reply)
        else:
            self.reply.set_result(reply)


class Microbatches:
    """Decides who goes with whom."""

    def __init__(self, config: GroupConfig, together: Together) -> None:
        self._config, self._together = config, together
        self._waiting: list[_Member] = []
        self._searching = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, routed: RoutedAsk) -> Reply | None:
        """The reply, or None if the request has to go alone. Raises its error."""
        if routed.ask.sampling.max_new_tokens > self._config.max_new_tokens:
            return None
        member = _Member(routed)
        self._waiting.append(member)
        self._leave()
        return await member.reply

    def _leave(self) -> None:
        """Send off those who wait, as long as not too many micro-batches are looking for passages."""
        while self._waiting and self._searching < self._config.at_once:
            size = self._config.max_size
            members, self._waiting = self._waiting[:size], self._waiting[size:]
            members = [member for member in members if not member.reply.done()]
            if members:
                self._searching += 1
                task = asyncio.create_task(self._travel(members))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _travel(self, members: Sequence[_Member]) -> None:
        searching = True

        def searched() -> None:
            nonlocal searching
            if searching:
                searching = False
                self._searching -= 1
                self._leave()

        try:
            async with aclosing(self._together([member.routed for member in members], searched)) as replies:
                async for number, reply in replies:
                    members[number].settle(reply)
                    if all(member.reply.done() for member in members):
                        break
        except BackPressureError as error:  # going alone would only add to the load
            for member in members:
                member.settle(error)
        except Exception as error:
            logger.warning("a group of %d requests failed, they go on alone: %s", len(members), type(error).__name__)
        finally:
            searched()
            for member in members:
                member.settle(None)
