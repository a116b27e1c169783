"""Whether a server can answer: a gateway that is up is of no use while a deployment behind it has no replica."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ray import serve
from ray.serve.schema import ReplicaState

logger = logging.getLogger("ray.serve")

NEEDED = ("retriever", "bank_loader", "generator")
_RUNNING = ReplicaState.RUNNING
_KEEP_SECONDS = 1.0
_WAIT_SECONDS = 5.0


def without_replicas() -> list[str]:
    """The deployments behind the gateway of this process that have no running replica, as Serve's controller knows."""
    application = serve.status().applications[serve.get_replica_context().app_name]
    return [
        name
        for name in NEEDED
        if name not in application.deployments or not application.deployments[name].replica_states.get(_RUNNING)
    ]


class Readiness:
    """Looks once a second at most, however often it is asked.

    If Serve's controller is silent, what it said last stays: replicas answer without it.
    """

    def __init__(self, look: Callable[[], list[str]] = without_replicas) -> None:
        self._look, self._missing, self._looked = look, list(NEEDED), float("-inf")
        self._looking: asyncio.Task[None] | None = None

    async def missing(self) -> list[str]:
        """The deployments that have no running replica."""
        if self._looking is None and time.monotonic() - self._looked > _KEEP_SECONDS:
            self._looking = asyncio.create_task(self._renew())
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=_WAIT_SECONDS)
        return self._missing

    async def _renew(self) -> None:
        try:
            self._missing = await asyncio.to_thread(self._look)
        except Exception as error:
            logger.warning("Serve's controller does not say what is running: %s", type(error).__name__)
        finally:
            self._looked, self._looking = time.monotonic(), None
