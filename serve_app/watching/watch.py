"""What a deployment holds to be watched: metrics, the request log and tracing together."""

from __future__ import annotations

from regrad.config import WatchingConfig
from serve_app.api.errors import Problem
from serve_app.messages import Ask, Reply
from serve_app.watching.metrics import Metrics
from serve_app.watching.request_log import RequestLog
from serve_app.watching.tracing import open_tracing


class Watch:
    """Made by a replica when it starts. Raises `ConfigError` if tracing is asked for and cannot be."""

    def __init__(self, config: WatchingConfig, deployment: str) -> None:
        self.tracing = open_tracing(config.tracing, deployment)
        self.metrics = Metrics()
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
