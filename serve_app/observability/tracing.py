"""Traces: spans over OTLP, and what a deployment reports (metrics and spans together)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from regrad.errors import ConfigError
from serve_app.config import OFFERED, WatchingConfig
from serve_app.http.errors import Problem
from serve_app.messages import Ask, Reply
from serve_app.observability.metrics import Metrics
from serve_app.observability.request_log import RequestLog

_HEADER = "traceparent"
_LONGEST = 200


class Tracing:
    """Makes spans, or, without a provider, nothing."""

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("regrad") if provider is not None else None

    @contextmanager
    def span(self, name: str, parent: str | None = None, **attributes: str | int | float) -> Iterator[str]:
        """A span around the block; gives its traceparent, or `parent` again (or "") if tracing is off.

        An error in the block marks the span by its class alone: its text could hold what somebody asked.
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
        """Send what is not sent yet."""
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
            "tracing asks for OpenTelemetry, which is not installed: `pip install 'regrad[tracing]'`, or leave "
            "watching.tracing out"
        ) from error
    url = endpoint if endpoint.rstrip("/").endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"
    resource = Resource.create({"service.namespace": "regrad", "service.name": deployment})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return Tracing(provider)


def _context(parent: str | None) -> Any:
    """The parent's context; what is no traceparent is as none, and a new trace begins."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {_HEADER: parent[:_LONGEST]} if parent else {}
    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def _traceparent(span: Any) -> str:
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context=set_span_in_context(span))
    return carrier[_HEADER]


class Watch:
    """Made by a replica when it starts. Raises `ConfigError` if tracing is asked for and cannot be."""

    def __init__(self, config: WatchingConfig, deployment: str, methods: Collection[str] = OFFERED) -> None:
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
