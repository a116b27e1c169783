"""What the HTTP routes need of the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from serve_app.api.record import Record
from serve_app.messages import Ask, Event, Reply


class Answering(Protocol):
    """What the HTTP routes need: the gateway, or a stand-in for it in tests. Errors are raised, see `api.errors`."""

    async def answer(self, ask: Ask) -> Reply:
        """The whole answer."""
        ...

    def stream(self, ask: Ask) -> AsyncIterator[Event]:
        """`Found` (if the method retrieves), then any number of `Piece`, then one `Reply`."""
        ...

    async def releases(self) -> list[dict[str, object]]:
        """What questions are answered from now, with the banks' versions, counts and shares, the main one first."""
        ...

    @property
    def full(self) -> bool:
        """Whether one more request would be refused: then it need not even be read."""
        ...

    async def missing(self) -> list[str]:
        """The parts of the server without which it cannot answer and that are not there; empty if it is ready."""
        ...

    def refused(self, record: Record) -> None:
        """Count and log a request that was refused before anybody asked for an answer."""
        ...
