"""One line of JSON a request. Never a key, and a question only if the configuration says so."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from serve_app.config import WatchingConfig
from serve_app.http.errors import Problem
from serve_app.messages import Ask, Reply
from serve_app.observability.metrics import milliseconds_by_stage

LOGGER = "regrad.requests"
_LONGEST = 500


class RequestLog:
    """Writes the lines. `caller` is a key's id.

    A file is opened again when it was moved away (logrotate). Several replicas on one machine may share it.
    """

    def __init__(self, config: WatchingConfig) -> None:
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
            degraded=[{"policy": each.policy, "reason": each.reason[:_LONGEST]} for each in answer.degraded],
        )

    def failed(self, ask: Ask | None, problem: Problem, caller: str | None = None, request_id: str = "") -> None:
        """The line of a request that ended in an error; `ask` is None if it was not understood, or not let in."""
        known = {"request_id": request_id[:_LONGEST]} if ask is None and request_id else {}
        self._write(ask, caller, **known, status=problem.status, error=problem.type)

    def _write(self, ask: Ask | None, caller: str | None, **fields: Any) -> None:
        if self._logger is None:
            return
        line: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        if ask is not None:
            line |= {"request_id": ask.request_id[:_LONGEST], "method": ask.method[:_LONGEST], "k": ask.k}
        line |= {"caller": caller, **fields}
        if ask is not None and self._questions:
            line["question"] = ask.question
        self._logger.info("%s", json.dumps(line))


def _logger(path: str | None) -> logging.Logger:
    """The logger of the lines, which go to one place and into no other log."""
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
