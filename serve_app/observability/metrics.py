"""Metrics of the server, and the milliseconds of each stage of an answer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from ray.serve import metrics

from regrad.bank.tiers import Tier
from serve_app.config import OFFERED
from serve_app.messages import Reply


def milliseconds_by_stage(reply: Reply) -> dict[str, float]:
    """How long each stage took that the answer went through, and `total`."""
    answered, stages = reply.answered, {}
    if reply.retrieved is not None:
        stages["retrieve"] = reply.retrieved.milliseconds
    if answered.uses:
        stages["load"] = answered.load_milliseconds
    stages["queue"] = answered.queue_milliseconds
    stages["prefill"] = answered.prefill_milliseconds
    stages["decode"] = answered.decode_milliseconds
    stages["total"] = reply.total_milliseconds
    return stages


def milliseconds_to_first_token(reply: Reply) -> float:
    """The stages before the first token, added up."""
    return sum(took for stage, took in milliseconds_by_stage(reply).items() if stage not in ("decode", "total"))


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Definition(NamedTuple):
    """A metric as it is exported."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


DEFINITIONS = {
    "regrad_requests": Definition("counter", "Requests answered, failed or refused.", ("method", "status", "kind")),
    "regrad_requests_in_flight": Definition("gauge", "Requests being worked on in a gateway."),
    "regrad_first_token_seconds": Definition("histogram", "Time to the first token.", ("method",), _SECONDS),
    "regrad_stage_seconds": Definition("histogram", "Time that a stage took.", ("stage",), _SECONDS),
    "regrad_tokens": Definition("counter", "Tokens of prompts (in) and of answers (out).", ("direction",)),
    "regrad_decode_batch_size": Definition("histogram", "Requests decoded together in a step.", (), _SIZES),
    "regrad_generator_queue": Definition("gauge", "Requests that wait for a place in a generator's batch."),
    "regrad_atoms": Definition("counter", "Atoms that went into answers, by the tier they came from.", ("tier",)),
    "regrad_atom_bytes": Definition("counter", "Bytes of atoms read, by the tier they came from.", ("tier",)),
    "regrad_degraded": Definition("counter", "Answers that were degraded, by policy.", ("policy",)),
}
_KINDS: dict[str, Any] = {"counter": metrics.Counter, "gauge": metrics.Gauge}


class Metrics:
    """The metrics of one process; every deployment makes one and calls what it knows."""

    def __init__(self, methods: Collection[str] = OFFERED) -> None:
        self._methods = methods
        self._metrics: dict[str, Any] = {name: _make(name, definition) for name, definition in DEFINITIONS.items()}
        self._in_flight = 0

    def answered(self, reply: Reply, first_token_seconds: float | None = None) -> None:
        """Count an answer and all that it says of itself. Without a measured first token, its stages are added up."""
        method = self._method(reply.ask.method)
        self._add("regrad_requests", 1, method=method, status="200", kind="ok")
        first = milliseconds_to_first_token(reply) / 1e3 if first_token_seconds is None else first_token_seconds
        self._observe("regrad_first_token_seconds", first, method=method)
        for stage, milliseconds in milliseconds_by_stage(reply).items():
            self._observe("regrad_stage_seconds", milliseconds / 1e3, stage=stage)
        self._add("regrad_tokens", reply.answered.prompt_tokens, direction="in")
        self._add("regrad_tokens", reply.answered.completion_tokens, direction="out")
        for use in reply.answered.uses:
            self._add("regrad_atoms", 1, tier="none" if use.missing else use.tier.value)
        for policy in {degraded.policy for degraded in reply.answered.degraded}:
            self._add("regrad_degraded", 1, policy=policy)

    def failed(self, kind: str, status: int, method: str = "") -> None:
        """Count a request that ended in an error, by the `type` and status that it was answered with."""
        self._add("regrad_requests", 1, method=self._method(method), status=str(status), kind=kind)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a request as in flight inside the block."""
        self._flight(1)
        try:
            yield
        finally:
            self._flight(-1)

    def batch(self, size: int) -> None:
        """A decoding step with so many requests."""
        self._observe("regrad_decode_batch_size", size)

    def queue(self, length: int) -> None:
        """So many requests wait for a place in the batch now."""
        self._metrics["regrad_generator_queue"].set(length)

    def read(self, tier: Tier, size: int) -> None:
        """So many bytes of atoms were read from a tier."""
        self._add("regrad_atom_bytes", size, tier=tier.value)

    def _method(self, name: str) -> str:
        """A method's name as a tag. Callers can send any; each new value would be one more series for ever."""
        return name if name in self._methods else "other"

    def _flight(self, change: int) -> None:
        self._in_flight += change
        self._metrics["regrad_requests_in_flight"].set(self._in_flight)

    def _add(self, name: str, amount: float, **tags: str) -> None:
        if amount > 0:
            self._metrics[name].inc(amount, tags=tags)

    def _observe(self, name: str, value: float, **tags: str) -> None:
        self._metrics[name].observe(max(0.0, value), tags=tags)


def _make(name: str, definition: Definition) -> Any:
    if definition.kind == "histogram":
        return metrics.Histogram(name, definition.text, list(definition.boundaries), definition.tags)
    return _KINDS[definition.kind](name, definition.text, definition.tags)
