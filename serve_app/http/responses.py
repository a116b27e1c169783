"""Responses: the native interface's, the grounds that every answer states, and their OpenAPI description."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from regrad.methods.base import PassageUse
from regrad.retrieval.hits import Hit
from serve_app.http.errors import ErrorBody, ErrorResponse
from serve_app.messages import Ask, Reply


class PassageSource(BaseModel):
    """What one of the indexes that the server searches as one said of a passage."""

    name: str = Field(description="the index's kind; numbered if there are several of it, after a slash if inside one")
    rank: int = Field(description="from 1, the best")
    score: float = Field(description="on this index's own scale")


class AnswerPassage(BaseModel):
    """One passage that the answer rests on. The score is the retriever's; null if the client named the passage."""

    id: str
    title: str
    text: str
    score: float | None
    sources: list[PassageSource] = Field(
        [], description="of a fused or reranked index: the ones that found it, with their own ranks and scores"
    )
    tier: str | None = Field(None, description="where its gradient was: memory, disk, store, or online (computed now)")
    contribution: float | None = Field(None, description="see the request's `contributions`")


class DegradedInfo(BaseModel):
    """Something that was done instead of what was asked for."""

    policy: str = Field(
        description="online, fewer or rag: for passages without a gradient; no-passages: none was found; drop: for "
        "passages that did not fit into the prompt"
    )
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
    """How an answer came about: by which method, from which passages and gradients, and whether all went as asked."""

    method: str
    k: int = Field(description="how many passages there were")
    gamma: float
    passages: list[AnswerPassage]
    release: str
    bank_version: str | None = Field(description="null for methods that apply no gradients")
    degraded: list[DegradedInfo] = Field(description="empty if everything was done as asked")
    batch_size: int = Field(description="the largest number of requests that were decoded together with this one")
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


class OfferedMethod(BaseModel):
    """One method and what it does."""

    name: str
    summary: str
    retrieves: bool
    passages_in_prompt: bool
    applies_gradients: bool


class MethodsResponse(BaseModel):
    """The answer to `GET /v1/methods`."""

    methods: list[OfferedMethod]


class ReadyResponse(BaseModel):
    """The answer to `GET /readyz`."""

    status: Literal["ready"]


class LimitsInfo(BaseModel):
    """The largest values that a request may have."""

    max_k: int
    max_gamma: float
    max_new_tokens: int
    max_question_characters: int


class BankResponse(BaseModel):
    """The answer to `GET /v1/bank`."""

    releases: list[dict[str, Any]] = Field(description="the current releases, the main one first")
    limits: LimitsInfo


def answer_passages(ask: Ask, hits: Sequence[Hit], uses: Sequence[PassageUse] = ()) -> list[AnswerPassage]:
    """Passages as the client sees them."""
    by_id = {use.id: use for use in uses}
    infos = []
    for hit in hits:
        passage = hit.passage
        use = by_id.get(passage.id, PassageUse(passage.id))
        infos.append(
            AnswerPassage(
                id=passage.id,
                title=passage.title,
                text=passage.text,
                score=None if ask.passage_ids else hit.score,
                sources=[PassageSource(name=one.name, rank=one.rank, score=one.score) for one in hit.sources],
                tier=None if use.missing else use.tier.value,
                contribution=use.contribution,
            )
        )
    return infos


def grounds(reply: Reply) -> Grounds:
    """How the answer came about."""
    ask = reply.ask
    answered = reply.answered
    passages = answer_passages(ask, reply.retrieved.hits if reply.retrieved else (), answered.uses)
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
        milliseconds=StageMilliseconds(
            retrieve=reply.retrieved.milliseconds if reply.retrieved else 0.0,
            load=answered.load_milliseconds,
            queue=answered.queue_milliseconds,
            prefill=answered.prefill_milliseconds,
            decode=answered.decode_milliseconds,
            generate=answered.prefill_milliseconds + answered.decode_milliseconds,
            total=reply.total_milliseconds,
        ),
    )


def usage_of(reply: Reply) -> Usage:
    """Tokens, as OpenAI's clients expect them."""
    prompt = reply.answered.prompt_tokens
    completion = reply.answered.completion_tokens
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


KEY_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key: `Authorization: Bearer KEY`"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "the same key by another header"},
}
_KEY_PROBLEMS = {
    401: "no API key, or one that is wrong, revoked or expired",
    429: "the server is full, or the key's limit is reached; `Retry-After` says when to try again",
    503: "the server cannot answer now; `Retry-After` says when to try again",
}

Responses = dict[int | str, dict[str, Any]]

DESCRIPTION = """Answers from retrieved gradients.

All errors have one form, `{"error": {"type", "field", "message", "code", "param"}}`. Every response has the header
`x-request-id`; the server's log names the request by it (with `_` for characters that an id may not have).
"""

_READING = {
    422: "a field or header is not as described; `field` names it",
    429: "the server is full; `Retry-After` says when to try again",
    500: "the server failed; its log says more under the request's id",
    503: "the server cannot answer now; `Retry-After` says when to try again",
    504: "the answer took longer than the server, or the request, allows",
}
_ASKING = {
    400: "the body is not JSON",
    404: "there is no such model, release or passage, or none was found and the method is set not to answer without",
    408: "the body did not arrive in time",
    413: "the body is larger than the limit, or the prompt longer than the context although passages may be left out "
    "of it (the message has the counts)",
    415: "the body's content type is not application/json",
    **_READING,
}

ANSWER_EVENTS = """event: passages
data: {"passages":[{"id":"p-17","title":"Ada","text":"...","score":7.1,"sources":[]}],"milliseconds":2.5}

event: token
data: {"text":"London"}

event: done
data: {"id":"...","answer":"London","method":"regrad","...":"as without stream"}

"""
COMPARE_EVENTS = """event: token
data: {"method":"rag","text":"London"}

event: error
data: {"method":"regrad","error":{"type":"overloaded","field":null,"message":"..."}}

event: end
data: {}

"""
CHUNK_EVENTS = """data: {"id":"...","object":"...","choices":[{"index":0,"...":"..."}]}

data: [DONE]

"""
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


def _problems(texts: dict[int, str]) -> Responses:
    responses: Responses = {status: {"model": ErrorResponse, "description": text} for status, text in texts.items()}
    for status in {429, 503} & set(texts):
        responses[status]["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return responses


READING_PROBLEMS = _problems(_READING)
ASKING_PROBLEMS = _problems(_ASKING)
READY_PROBLEMS = _problems(
    {**_READING, 503: "a deployment has no running replica; the message names it"},
)
MODEL_PROBLEMS = _problems({404: "there is no such model; the message lists the known ones", 422: _READING[422]})


def with_keys(description: dict[str, Any], is_open: Callable[[str], bool]) -> dict[str, Any]:
    """An OpenAPI description in which all paths but the open ones need a key, in either header."""
    description.setdefault("components", {})["securitySchemes"] = KEY_SCHEMES
    description["security"] = [{name: []} for name in KEY_SCHEMES]
    schema = {"$ref": f"#/components/schemas/{ErrorResponse.__name__}"}
    for path, methods in description["paths"].items():
        for operation in methods.values():
            if is_open(path):
                operation["security"] = []
                continue
            for status, text in _KEY_PROBLEMS.items():
                content = {"application/json": {"schema": schema}}
                operation["responses"].setdefault(str(status), {"content": content})["description"] = text
    return description


def or_events(example: str) -> Responses:
    """The responses of a route that answers with JSON, or with these events if `stream` is set."""
    stream = {"itemSchema": _EVENT, "example": example}
    return {200: {"content": {"text/event-stream": stream}}, **ASKING_PROBLEMS}
