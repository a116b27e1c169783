"""Deployment: the HTTP door. It validates, composes the stages of one request, and never touches the tensors.

Responses are passed on un-awaited: the bank loader's sum goes straight to the generator.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from regrad.config import ServeConfig
from regrad.errors import ModelError, PassageNotFound, RegradError
from regrad.methods import get_method
from serve_app.api import (
    AnswerRequest,
    AnswerResponse,
    PassageInfo,
    StageMilliseconds,
    error_content,
    limited_request,
)
from serve_app.messages import Answered, Question, Retrieved

logger = logging.getLogger("ray.serve")


class NothingFound(RegradError):
    """No passage matches the question, so there is nothing to answer from."""


class Gateway:
    """Composes retriever, bank loader and generator for each request."""

    def __init__(
        self,
        config: ServeConfig,
        retriever: DeploymentHandle,
        bank_loader: DeploymentHandle,
        generator: DeploymentHandle,
    ) -> None:
        self._config = config
        self._retriever, self._bank_loader, self._generator = retriever, bank_loader, generator

    async def answer(self, request: AnswerRequest) -> AnswerResponse:
        """Answer one request within the time limit."""
        started = time.perf_counter()
        async with asyncio.timeout(self._config.limits.request_seconds):
            retrieved, answered = await self._compose(request)
        stages = StageMilliseconds(
            retrieve=retrieved.milliseconds if retrieved else 0.0,
            load=answered.load_milliseconds,
            queue=answered.queue_milliseconds,
            generate=answered.generate_milliseconds,
            total=(time.perf_counter() - started) * 1e3,
        )
        passages = _passages(retrieved, named=request.passage_ids is not None)
        return AnswerResponse(
            answer=answered.text,
            method=request.method,
            k=len(passages),
            gamma=request.gamma,
            passages=passages,
            bank_version=answered.bank_version,
            prompt_tokens=answered.prompt_tokens,
            batch_size=answered.batch_size,
            milliseconds=stages,
        )

    async def _compose(self, request: AnswerRequest) -> tuple[Retrieved | None, Answered]:
        method = get_method(request.method)
        question = Question(request.question, request.method, request.gamma, request.max_new_tokens)
        if not method.retrieves:
            return None, await self._generator.answer.remote(question, None, None)
        found = self._retrieve(request)
        gradients = self._bank_loader.load.remote(found) if method.applies_gradients else None
        answer = self._generator.answer.remote(question, found, gradients)
        retrieved: Retrieved = await found
        if not retrieved.hits:
            answer.cancel()
            raise NothingFound("no passage of the index matches the question")
        return retrieved, await answer

    def _retrieve(self, request: AnswerRequest) -> Any:
        if request.passage_ids is not None:
            return self._retriever.look_up.remote(request.passage_ids)
        return self._retriever.search.remote(request.question, request.k)


def _passages(retrieved: Retrieved | None, named: bool) -> list[PassageInfo]:
    hits = retrieved.hits if retrieved else ()
    return [PassageInfo(id=hit.passage.id, title=hit.passage.title, score=None if named else hit.score) for hit in hits]


def make_api(config: ServeConfig) -> FastAPI:
    """The FastAPI application of one server; the gateway is given to it when its replica starts."""
    api = FastAPI(title="regrad", description="Answers from retrieved gradients.", version="1")
    request_type = limited_request(config.limits)

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    async def answer(body: request_type) -> AnswerResponse:  # type: ignore[valid-type]
        gateway: Gateway = serve.get_replica_context().servable_object
        return await gateway.answer(body)

    answer.__annotations__["body"] = request_type
    api.post("/v1/answer", response_model=AnswerResponse)(answer)
    api.middleware("http")(_body_limit(config.limits.max_body_bytes))
    _add_error_handlers(api)
    return api


def _body_limit(limit: int) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    async def check(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        size = 0
        chunks = []
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                message = f"the body is larger than {limit} bytes"
                return JSONResponse(error_content("too_large", message, "body"), status_code=413)
            chunks.append(chunk)
        request._body = b"".join(chunks)
        return await call_next(request)

    return check


def _add_error_handlers(api: FastAPI) -> None:
    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse(error_content("invalid_json", "the body is not JSON", "body"), status_code=400)
        field = ".".join(str(part) for part in first["loc"][1:])[:80] or "body"
        message = first["msg"].removeprefix("Value error, ")
        return JSONResponse(error_content("invalid_request", f"{field}: {message}", field), status_code=422)

    @api.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:
            content = error_content("invalid_json", "the body is not JSON", "body")
        else:
            content = error_content("not_found" if error.status_code == 404 else "refused", str(error.detail), "path")
        return JSONResponse(content, status_code=error.status_code, headers=error.headers)

    async def failed(request: Request, error: Exception) -> JSONResponse:
        kind, status, field, message = _classify(error)
        if status >= 500:
            logger.error("request failed: %s", type(error).__name__, exc_info=error)
        return JSONResponse(error_content(kind, message, field), status_code=status)

    for kind_of_error in (RegradError, RayTaskError, BackPressureError, TimeoutError, Exception):
        api.add_exception_handler(kind_of_error, failed)


def _classify(error: Exception) -> tuple[str, int, str | None, str]:
    cause = getattr(error, "cause", None) or error
    if isinstance(error, PassageNotFound) or isinstance(cause, PassageNotFound):
        return "not_found", 404, "passage_ids", str(cause)
    if isinstance(cause, NothingFound):
        return "not_found", 404, "question", str(cause)
    if isinstance(error, ModelError) or isinstance(cause, ModelError):
        return "too_long", 422, "question", str(cause)
    if isinstance(error, BackPressureError):
        return "overloaded", 429, None, "the server is full; try again in a moment"
    if isinstance(error, TimeoutError):
        return "timeout", 504, None, "the answer took longer than the server allows"
    if isinstance(cause, RegradError):
        return "unavailable", 503, None, str(cause)
    return "internal", 500, None, "the server failed; its log says more"
