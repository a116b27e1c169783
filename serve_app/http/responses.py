"""The native interface: answers, and what every answer states whatever the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from regrad.methods.base import PassageUse
from regrad.retrieval.base import Hit
from serve_app.http.errors import ErrorBody
from serve_app.messages import Ask, Reply


class PassageInfo(BaseModel):
    """One passage that the answer rests on. The score is the retriever's; null where the caller named the passage."""

    id: str
    title: str
    text: str
    score: float | None
    tier: str | None = Field(None, description="where its gradient was: memory, disk, store, or online (computed now)")
    contribution: float | None = Field(None, description="see the request's `contributions`")


class DegradedInfo(BaseModel):
    """Something that was done instead of what was asked for."""

    policy: str
    reason: str
    passage_ids: list[str]


class Usage(BaseModel):
    """Tokens of the prompt and of the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class StageMilliseconds(BaseModel):
    """Where the time went; stages that a method does not have are 0. `generate` is prefill and decode."""

    retrieve: float
    load: float
    queue: float
    prefill: float
    decode: float
    generate: float
    total: float


class Grounds(BaseModel):
    """How an answer came about: by which method, from which knowledge, and whether all went as asked."""

    method: str
    k: int = Field(description="how many passages there were")
    gamma: float
    passages: list[PassageInfo]
    release: str
    bank_version: str | None = Field(description="null for methods that apply no gradients")
    degraded: list[DegradedInfo] = Field(description="empty if everything was done as asked")
    batch_size: int = Field(description="with how many others, at most, the request was decoded, itself included")
    milliseconds: StageMilliseconds


class AnswerResponse(Grounds):
    """The answer to `POST /v1/answer`."""

    id: str = Field(description="the request's id, as in the header x-request-id and in the server's logs")
    answer: str
    finish_reason: str = Field(description="stop | length")
    usage: Usage


class CompareResponse(BaseModel):
    """The answer to `POST /v1/compare`; a method that failed has an error instead of an answer."""

    answers: list[AnswerResponse]
    errors: dict[str, ErrorBody] = Field(description="by method")


class MethodInfo(BaseModel):
    """One method and what it does."""

    name: str
    summary: str
    retrieves: bool
    passages_in_prompt: bool
    applies_gradients: bool


class MethodsResponse(BaseModel):
    """The answer to `GET /v1/methods`."""

    methods: list[MethodInfo]


class ReadyResponse(BaseModel):
    """The answer to `GET /readyz`."""

    status: Literal["ready"]


class LimitsInfo(BaseModel):
    """What a request may ask for at most."""

    max_k: int
    max_gamma: float
    max_new_tokens: int
    max_question_characters: int


class BankResponse(BaseModel):
    """The answer to `GET /v1/bank`."""

    releases: list[dict[str, Any]] = Field(description="what questions are answered from now, the main one first")
    limits: LimitsInfo


def passage_infos(ask: Ask, hits: Sequence[Hit], uses: Sequence[PassageUse] = ()) -> list[PassageInfo]:
    """Passages as the caller sees them."""
    by_id = {use.id: use for use in uses}
    infos = []
    for hit in hits:
        passage = hit.passage
        use = by_id.get(passage.id, PassageUse(passage.id))
        infos.append(
            PassageInfo(
                id=passage.id,
                title=passage.title,
                text=passage.text,
                score=None if ask.passage_ids else hit.score,
                tier=None if use.missing else use.tier.value,
                contribution=use.contribution,
            )
        )
    return infos


def grounds(reply: Reply) -> Grounds:
    """How the answer came about."""
    ask, answered = reply.ask, reply.answered
    passages = passage_infos(ask, reply.retrieved.hits if reply.retrieved else (), answered.uses)
    return Grounds(
        method=ask.method,
        k=len(passages),
        gamma=ask.gamma,
        passages=passages,
        release=answered.release,
        bank_version=answered.bank_version,
        degraded=[
            DegradedInfo(policy=d.policy, reason=d.reason, passage_ids=list(d.passage_ids)) for d in answered.degraded
        ],
        batch_size=answered.batch_size,
        milliseconds=_stages(reply),
    )


def usage_of(reply: Reply) -> Usage:
    """Tokens, as OpenAI's clients expect them."""
    prompt, completion = reply.answered.prompt_tokens, reply.answered.completion_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def answer_response(reply: Reply) -> AnswerResponse:
    """The reply as the native interface gives it."""
    return AnswerResponse(
        id=reply.ask.request_id,
        answer=reply.answered.text,
        finish_reason=reply.answered.finish_reason,
        usage=usage_of(reply),
        **grounds(reply).__dict__,
    )


def _stages(reply: Reply) -> StageMilliseconds:
    answered = reply.answered
    return StageMilliseconds(
        retrieve=reply.retrieved.milliseconds if reply.retrieved else 0.0,
        load=answered.load_milliseconds,
        queue=answered.queue_milliseconds,
        prefill=answered.prefill_milliseconds,
        decode=answered.decode_milliseconds,
        generate=answered.prefill_milliseconds + answered.decode_milliseconds,
        total=reply.total_milliseconds,
    )
