"""Users of a server, in a process of their own: their traffic (JSON) comes by standard input, what happened goes to
standard output, a line a request.

`closed`: so many users, each of whom asks again as soon as it has the answer. `open`: requests at random times
(Poisson) at a rate, whatever the server does; the time of one counts from when it was due, not from when it was sent.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

_PATH = "/v1/answer"
_LATE_SECONDS = 120.0
_NO_ANSWER = 0


@dataclass(frozen=True)
class Traffic:
    """What is asked, where and how: the bodies in turn, by so many users, or at a rate, for so many seconds.

    With `once` users go home when they have asked every body that is theirs. Several of these begin at one time (of
    `time.time`) with `start_at`.
    """

    url: str
    bodies: Sequence[dict[str, Any]]
    seconds: float
    users: int = 0
    rate: float = 0.0
    seed: int = 0
    once: bool = False
    start_at: float = 0.0


@dataclass(frozen=True)
class RequestOutcome:
    """One request: which of the bodies, when it was due, how long it took, and what came (status 0: nothing)."""

    body: int
    due: float
    seconds: float
    status: int
    answer: str = ""
    batch_size: int = 0
    tokens: int = 0


def run(traffic: Traffic) -> list[RequestOutcome]:
    """Make the traffic in a new process; the outcomes in the order of their ends."""
    command = [sys.executable, __file__]
    done = subprocess.run(command, input=json.dumps(asdict(traffic)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
    return [RequestOutcome(**json.loads(line)) for line in done.stdout.splitlines()]


class Users:
    """Asks as the traffic says and keeps the outcomes."""

    def __init__(self, traffic: Traffic, session: aiohttp.ClientSession) -> None:
        self._traffic, self._session = traffic, session
        self._bodies = [json.dumps(body).encode() for body in traffic.bodies]
        self._started = time.perf_counter()
        self.outcomes: list[RequestOutcome] = []

    async def carry_out(self) -> None:
        """All of the traffic."""
        if self._traffic.users:
            await asyncio.gather(*[self._user(number) for number in range(self._traffic.users)])
        else:
            await self._arrivals()

    async def _user(self, number: int) -> None:
        """Different users ask different questions, and nobody repeats one before all were asked."""
        body = number
        while time.perf_counter() - self._started < self._traffic.seconds:
            await self._ask(body % len(self._bodies), time.perf_counter())
            body += self._traffic.users
            if self._traffic.once and body >= len(self._bodies):
                return

    async def _arrivals(self) -> None:
        asked = []
        for number, due in enumerate(arrivals(self._traffic.rate, self._traffic.seconds, self._traffic.seed)):
            await asyncio.sleep(max(0.0, self._started + due - time.perf_counter()))
            asked.append(asyncio.create_task(self._ask(number % len(self._bodies), self._started + due)))
        await asyncio.gather(*asked)

    async def _ask(self, body: int, due: float) -> None:
        status, content = _NO_ANSWER, b""
        try:
            async with self._session.post(self._traffic.url + _PATH, data=self._bodies[body]) as response:
                content = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError):
            pass
        ended = time.perf_counter()
        self.outcomes.append(_outcome(body, due - self._started, ended - due, status, content))


def _outcome(body: int, due: float, seconds: float, status: int, content: bytes) -> RequestOutcome:
    if status != 200:
        return RequestOutcome(body, due, seconds, status)
    found = json.loads(content)
    used = found.get("usage") or {}
    return RequestOutcome(
        body, due, seconds, status, found["answer"], found.get("batch_size", 0), used.get("completion_tokens", 0)
    )


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """When requests come: independent of each other, `rate` a second on average."""
    rng, due = random.Random(seed), 0.0
    while (due := due + rng.expovariate(rate)) < seconds:
        yield due


def _allow_connections() -> None:
    """As many at a time as the system lets this process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _main() -> None:
    traffic = Traffic(**json.load(sys.stdin))
    _allow_connections()
    connections = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_LATE_SECONDS)
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=connections, timeout=timeout, headers=headers) as session:
        await asyncio.sleep(max(0.0, traffic.start_at - time.time()))
        users = Users(traffic, session)
        await users.carry_out()
    for outcome in users.outcomes:
        sys.stdout.write(json.dumps(asdict(outcome)) + "\n")


if __name__ == "__main__":
    asyncio.run(_main())
