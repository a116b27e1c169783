"""Errors as HTTP responses: a code, a status, a sentence; and the record of the current request."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import BaseModel, Field
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from regrad.errors import MethodError, NothingFound, PassageNotFound, PromptTooLong, RegradError, TokenOutOfVocabulary

logger = logging.getLogger("ray.serve")


@dataclass
class RequestRecord:
    """One request: its id, the id of its key, the error that it was answered with, and whether that was counted."""

    request_id: str
    key_id: str | None = None
    problem: Problem | None = None
    counted: bool = False


record_at_hand: ContextVar[RequestRecord | None] = ContextVar("regrad_record", default=None)


def current_record() -> RequestRecord | None:
    """The record of the current request, from anywhere in its tasks; None outside of one."""
    return record_at_hand.get()


class UnknownRelease(RegradError):
    """A release was named that the server does not have; the text lists those that it has."""

    area = "serve.unknown_release"


class ErrorBody(BaseModel):
    """Every error: its kind, the field at fault if there is one, and what to do; `code` and `param` as OpenAI's."""

    type: str = Field(examples=["invalid_request"])
    field: str | None = Field(examples=["k"])
    message: str = Field(examples=["k: Input should be less than or equal to 10"])
    code: str | None = Field(None, examples=["invalid_request"])
    param: str | None = Field(None, examples=["k"])


class ErrorResponse(BaseModel):
    """`{"error": {...}}`."""

    error: ErrorBody


class Problem(NamedTuple):
    """An error as the client gets it; `retry_after` is in seconds."""

    type: str
    status: int
    field: str | None
    message: str
    retry_after: int | None = None
    code: str | None = None

    @property
    def body(self) -> ErrorBody:
        """The error in the response's body. What is not valid Unicode is escaped: names of fields may contain it."""
        field = None if self.field is None else _printable(self.field)
        message = _printable(self.message)
        return ErrorBody(type=self.type, field=field, message=message, code=self.code or self.type, param=field)

    @property
    def content(self) -> dict[str, Any]:
        """The body of the response."""
        return ErrorResponse(error=self.body).model_dump()

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After`, if it is worth trying again."""
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}

    def response(self, headers: Mapping[str, str] = MappingProxyType({})) -> JSONResponse:
        """The whole response, with these headers, too. It notes the problem in the request's record."""
        return _ProblemResponse(self, headers)


class _ProblemResponse(JSONResponse):
    def __init__(self, problem: Problem, headers: Mapping[str, str]) -> None:
        super().__init__(problem.content, problem.status, {**problem.headers, **headers})
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if record := current_record():
            record.problem = self._problem
        await super().__call__(scope, receive, send)


class Refused(HTTPException):
    """Raised where a request ends with this problem; its details were logged before."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.status, problem.message, problem.headers)
        self.problem = problem


def invalid_request(field: str, message: str) -> Refused:
    """A field that cannot be accepted."""
    return Refused(Problem("invalid_request", 422, field, f"{field}: {message}"))


def problem_of(error: BaseException) -> Problem:
    """An error that was raised while a question was being answered, as the client gets it."""
    cause: BaseException = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, BaseException):
        cause = cause.cause
    if isinstance(cause, Refused):
        return cause.problem
    for kinds, problem in _PROBLEMS:
        if isinstance(cause, kinds) and not isinstance(cause, RayTaskError):
            return problem if problem.message else problem._replace(message=str(cause))
    return INTERNAL


def reported(error: BaseException, request_id: str) -> Problem:
    """The problem; details that the client does not get are logged."""
    problem = problem_of(error)
    if problem.status == 504:
        logger.warning("request %s: out of time", request_id)
    elif problem.status >= 500 and not isinstance(error, Refused):
        logger.error("request %s: %s: %s", request_id, problem.type, type(error).__name__, exc_info=error)
    return problem


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


INTERNAL = Problem("internal", 500, None, "the server failed; its log says more under the request's id")
UNAVAILABLE = Problem(
    "unavailable", 503, None, "the server cannot answer this now; its log says more under the request's id", 5
)
FULL = Problem("overloaded", 429, None, "the server is full; try again in a moment", retry_after=1)
_LATE = "the answer took longer than was allowed"
# An empty message stands for the error's own text, which is meant for the client; texts of other errors stay here.
# The first row whose class fits counts, so the general ones are last.
_PROBLEMS: tuple[tuple[Any, Problem], ...] = (
    (PassageNotFound, Problem("not_found", 404, "passage_ids", "")),
    (NothingFound, Problem("not_found", 404, "question", "")),
    (UnknownRelease, Problem("not_found", 404, "release", "")),
    (PromptTooLong, Problem("too_long", 413, "question", "")),
    (TokenOutOfVocabulary, Problem("invalid_request", 422, "question", "")),
    # A method that was opened raises it for more passages than its adapters have room for.
    (MethodError, Problem("invalid_request", 422, "k", "")),
    (BackPressureError, FULL),
    (TimeoutError, Problem("timeout", 504, None, _LATE)),
    ((RegradError, RayError, RayServeException, CancelledError), UNAVAILABLE),
)
