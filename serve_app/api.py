"""The HTTP interface: what a request and an answer look like, and what an error looks like."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from regrad.config import LimitsConfig
from regrad.errors import MethodError
from regrad.methods import METHODS, get_method


class AnswerRequest(BaseModel):
    """The body of `POST /v1/answer`."""

    model_config = ConfigDict(extra="forbid")

    question: str = Field(min_length=1, description="the question, in plain text")
    method: str = Field("regrad", description=" | ".join(METHODS))
    k: int = Field(3, ge=1, description="how many passages to retrieve")
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False, description="scale of the update (regrad methods)")
    max_new_tokens: int = Field(20, ge=1)
    passage_ids: list[str] | None = Field(
        None, min_length=1, description="use these passages instead of retrieving; k is ignored"
    )

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return get_method(name).name
        except MethodError as error:
            raise ValueError(str(error)) from error

    @field_validator("question")
    @classmethod
    def _not_blank(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("the question is blank")
        return question


def limited_request(limits: LimitsConfig) -> type[AnswerRequest]:
    """`AnswerRequest` with this server's limits in its schema."""
    fields: dict[str, Any] = {
        "question": (str, Field(min_length=1, max_length=limits.max_question_characters)),
        "k": (int, Field(min(3, limits.max_k), ge=1, le=limits.max_k)),
        "gamma": (float, Field(1.0, ge=0, le=limits.max_gamma, allow_inf_nan=False)),
        "max_new_tokens": (int, Field(min(20, limits.max_new_tokens), ge=1, le=limits.max_new_tokens)),
        "passage_ids": (list[str] | None, Field(None, min_length=1, max_length=limits.max_k)),
    }
    return create_model("AnswerRequest", __base__=AnswerRequest, **fields)


class PassageInfo(BaseModel):
    """One passage that the answer rests on. The score is BM25's; null where the caller named the passage."""

    id: str
    title: str
    score: float | None


class StageMilliseconds(BaseModel):
    """Where the time went; stages that a method does not have are 0."""

    retrieve: float
    load: float
    queue: float
    generate: float
    total: float


class AnswerResponse(BaseModel):
    """The answer to `POST /v1/answer`."""

    answer: str
    method: str
    k: int
    gamma: float
    passages: list[PassageInfo]
    bank_version: str | None = Field(description="null for methods that apply no gradients")
    prompt_tokens: int
    batch_size: int = Field(description="how many requests were decoded together with this one")
    milliseconds: StageMilliseconds


class ErrorBody(BaseModel):
    """Every error: its kind, the field at fault if there is one, and what to do."""

    type: str
    field: str | None
    message: str


class ErrorResponse(BaseModel):
    """`{"error": {...}}`."""

    error: ErrorBody


def error_content(kind: str, message: str, field: str | None = None) -> dict[str, Any]:
    """An error as JSON content."""
    return ErrorResponse(error=ErrorBody(type=kind, field=field, message=message)).model_dump()
