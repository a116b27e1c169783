"""What a server says about itself: metrics, a log line for each request, traces, and how much a replica has in hand.

Never a key, and a question only if the configuration says so.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ray.serve import metrics

from regrad.bank.tiers import Tier
from regrad.errors import ConfigError
from serve_app.config import OFFERED, ObservabilityConfig
from serve_app.http.errors import Problem
from serve_app.messages import Ask, Reply


def milliseconds_by_stage(reply: Reply) -> dict[str, float]:
    """How long each stage took that the answer went through, and `total`."""
    answered = reply.answered
    stages = {}
    if reply.retrieved is not None:
        stages["retrieve"] = reply.retrieved.milliseconds
    if answered.uses:
        stages["load"] = answered.load_milliseconds
    stages["queue"] = answered.queue_milliseconds
    stages["prefill"] = answered.prefill_milliseconds
    stages["decode"] = answered.decode_milliseconds
    stages["total"] = reply.total_milliseconds
    return stages


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
    "regrad_prefix_hits": Definition("counter", "Requests whose prompt begins with what a generator has kept."),
    "regrad_prefix_tokens": Definition("counter", "Tokens of prompts that were kept from earlier requests."),
    "regrad_prefix_bytes": Definition("gauge", "Bytes of what prompts begin with that a generator keeps."),
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
        """Count an answer. Without a measured first token, the stages before it are added up."""
        method = self._method(reply.ask.method)
        self._add("regrad_requests", 1, method=method, status="200", kind="ok")
        stages = milliseconds_by_stage(reply)
        if first_token_seconds is None:
            first_token_seconds = sum(took for stage, took in stages.items() if stage not in ("decode", "total")) / 1e3
        self._observe("regrad_first_token_seconds", first_token_seconds, method=method)
        for stage, milliseconds in stages.items():
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
        """A request was decoded together with others: `size` in all."""
        self._observe("regrad_decode_batch_size", size)

    def queue(self, length: int) -> None:
        """`length` requests wait for a place in the batch now."""
        self._metrics["regrad_generator_queue"].set(length)

    def prefix(self, tokens: int, kept: int) -> None:
        """Of a request's prompt `tokens` were kept from earlier ones; `kept` bytes of such are in memory now."""
        self._add("regrad_prefix_hits", 1 if tokens else 0)
        self._add("regrad_prefix_tokens", tokens)
        self._metrics["regrad_prefix_bytes"].set(kept)

    def read(self, tier: Tier, size: int) -> None:
        """`size` bytes of atoms were read from a tier."""
        self._add("regrad_atom_bytes", size, tier=tier.value)

    def _method(self, name: str) -> str:
        """A method's name as a tag. Clients can send any name, and each would be a time series for ever."""
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


LOGGER = "regrad.requests"
_MAX_LOGGED = 500


class RequestLog:
    """Writes one line of JSON for each request. `caller` is the id of its key.

    A log file that logrotate has moved is opened again. Several replicas on one machine may share it.
    """

    def __init__(self, config: ObservabilityConfig) -> None:
        self._questions = config.log_questions
        self._logger = _logger(config.request_log) if config.log_requests else None

    def answered(self, reply: Reply, caller: str | None = None) -> None:
        """The line of an answer."""
        answer = reply.answered
        self._write(
            reply.ask,
            caller,
            status=200,
            release=answer.release,
            bank_version=answer.bank_version,
            milliseconds={stage: round(took, 3) for stage, took in milliseconds_by_stage(reply).items()},
            tokens={"prompt": answer.prompt_tokens, "completion": answer.completion_tokens},
            tiers=["" if use.missing else use.tier.value for use in answer.uses],
            batch_size=answer.batch_size,
            finish_reason=answer.finish_reason,
            degraded=[{"policy": each.policy, "reason": each.reason[:_MAX_LOGGED]} for each in answer.degraded],
        )

    def failed(self, ask: Ask | None, problem: Problem, caller: str | None = None, request_id: str = "") -> None:
        """The line of a request that ended in an error; `ask` is None if it was not understood, or not let in."""
        known = {"request_id": request_id[:_MAX_LOGGED]} if ask is None and request_id else {}
        self._write(ask, caller, **known, status=problem.status, error=problem.type)

    def _write(self, ask: Ask | None, caller: str | None, **fields: Any) -> None:
        if self._logger is None:
            return
        line: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        if ask is not None:
            line |= {"request_id": ask.request_id[:_MAX_LOGGED], "method": ask.method[:_MAX_LOGGED], "k": ask.k}
        line |= {"caller": caller, **fields}
        if ask is not None and self._questions:
            line["question"] = ask.question
        self._logger.info("%s", json.dumps(line))


def _logger(path: str | None) -> logging.Logger:
    """The logger of the lines, which go to one place and into no other log.

    A logger outlives a replica's object in its process, so the handlers of an earlier one are closed.
    """
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    handler: logging.Handler = WatchedFileHandler(path, encoding="utf-8") if path else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    return logger


_HEADER = "traceparent"
_MAX_TRACEPARENT = 200


class Tracing:
    """Makes spans; without a provider, none."""

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("regrad") if provider is not None else None

    @contextmanager
    def span(self, name: str, parent: str | None = None, **attributes: str | int | float) -> Iterator[str]:
        """A span around the block; gives its traceparent, or `parent` again (or "") if tracing is off.

        An error in the block marks the span by its class alone: its text could contain the question.
        """
        if self._tracer is None:
            yield parent or ""
            return
        from opentelemetry import trace

        span = self._tracer.start_span(name, context=_context(parent), attributes=attributes)
        try:
            yield _traceparent(span)
        except BaseException as error:
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            span.end()

    def close(self) -> None:
        """Send the spans that were not sent yet."""
        if self._provider is not None:
            self._provider.shutdown()


def open_tracing(endpoint: str | None, deployment: str) -> Tracing:
    """Tracing to an OTLP endpoint (HTTP), or none; raises `ConfigError` if OpenTelemetry is not installed."""
    if endpoint is None:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "tracing needs OpenTelemetry, which is not installed: `pip install 'regrad[tracing]'`, or leave "
            "watching.tracing out",
            code="not_installed",
            package="opentelemetry",
        ) from error
    url = endpoint if endpoint.rstrip("/").endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"
    resource = Resource.create({"service.namespace": "regrad", "service.name": deployment})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return Tracing(provider)


def _context(parent: str | None) -> Any:
    """The parent's context; one that is not a valid traceparent is ignored, and a new trace begins."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {_HEADER: parent[:_MAX_TRACEPARENT]} if parent else {}
    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def _traceparent(span: Any) -> str:
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context=set_span_in_context(span))
    return carrier[_HEADER]


QUESTIONS = "questions"
CALLS = "calls"


class InHand:
    """How many questions and calls a replica works on, on average over the time since it was asked last.

    Any thread may count: Serve runs some methods in threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._now = {QUESTIONS: 0, CALLS: 0}
        self._sums = {QUESTIONS: 0.0, CALLS: 0.0}
        self._asked = self._changed = clock()

    @contextmanager
    def call(self, questions: int) -> Iterator[None]:
        """A call with so many questions, for as long as the block takes."""
        self._add(questions, 1)
        try:
            yield
        finally:
            self._add(-questions, -1)

    def averages(self) -> dict[str, float]:
        """What Serve's controller is told: `QUESTIONS` and `CALLS`."""
        with self._lock:
            self._pass_time()
            elapsed = self._changed - self._asked
            found = {
                name: (self._sums[name] / elapsed if elapsed > 0 else float(self._now[name])) for name in self._now
            }
            self._sums = dict.fromkeys(self._sums, 0.0)
            self._asked = self._changed
            return found

    def _add(self, questions: int, calls: int) -> None:
        with self._lock:
            self._pass_time()
            self._now[QUESTIONS] += questions
            self._now[CALLS] += calls

    def _pass_time(self) -> None:
        now = self._clock()
        for name, count in self._now.items():
            self._sums[name] += count * (now - self._changed)
        self._changed = now


class Watch:
    """Metrics, log and traces of one replica. Raises `ConfigError` if tracing is configured but not installed."""

    def __init__(self, config: ObservabilityConfig, deployment: str, methods: Collection[str] = OFFERED) -> None:
        self.tracing = open_tracing(config.tracing, deployment)
        self.metrics = Metrics(methods)
        self._log = RequestLog(config)
        self.span = self.tracing.span

    def observe(self, reply: Reply, caller: str | None = None, first_token_seconds: float | None = None) -> None:
        """Count and log an answer; `caller` is the id of the key that it was asked with."""
        self.metrics.answered(reply, first_token_seconds)
        self._log.answered(reply, caller)

    def failed(self, ask: Ask | None, problem: Problem, caller: str | None = None, request_id: str = "") -> None:
        """Count and log a request that ended in an error; `ask` is None if it was not understood."""
        self.metrics.failed(problem.type, problem.status, ask.method if ask else "")
        self._log.failed(ask, problem, caller, request_id)
