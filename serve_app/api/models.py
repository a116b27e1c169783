"""The native interface: the bodies of `/v1/answer` and `/v1/compare`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from regrad.methods import SERVED
from serve_app.api.calling import Caller
from serve_app.api.fields import MethodName, PassageIds, Question, Stops, Strict, Text
from serve_app.messages import Ask, Contributions, Sampling

_QUESTION = "Where was Ada Lovelace born?"


class Options(Strict):
    """What an answer can be asked with, whatever the method."""

    question: Question = Field(min_length=1, description="the question, in plain text", examples=[_QUESTION])
    k: int = Field(3, ge=1, description="how many passages to retrieve")
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False, description="scale of the update (regrad methods)")
    max_new_tokens: int = Field(20, ge=1)
    temperature: float = Field(0.0, ge=0, le=2, allow_inf_nan=False, description="0: greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63, description="makes sampling repeatable")
    stop: Stops | None = Field(None, description="strings that end the answer; default: the model's")
    passage_ids: PassageIds | None = Field(
        None, description="use these passages instead of retrieving; k is ignored", examples=[["p-17", "p-4"]]
    )
    release: Text | None = Field(
        None, min_length=1, max_length=100, description="answer from this release, whatever the shares"
    )
    contributions: Contributions | None = Field(None, description="measure each passage's part in the answer")
    stream: bool = Field(False, description="server-sent events instead of one body")

    def ask(self, method: str, caller: Caller) -> Ask:
        """The question as the gateway gets it."""
        stop = tuple(self.stop) if self.stop else None
        return Ask(
            question=self.question,
            method=method,
            k=self.k,
            gamma=self.gamma,
            sampling=Sampling(self.max_new_tokens, self.temperature, self.top_p, self.seed, stop),
            passage_ids=None if self.passage_ids is None else tuple(self.passage_ids),
            release=self.release,
            contributions=self.contributions,
            request_id=caller.request_id,
            seconds=caller.seconds,
            traceparent=caller.traceparent,
        )


class AnswerRequest(Options):
    """The body of `POST /v1/answer`."""

    method: MethodName = Field("regrad", description=" | ".join(SERVED))


def _once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


class CompareRequest(Options):
    """The body of `POST /v1/compare`: one question, several methods side by side."""

    methods: Annotated[list[MethodName], AfterValidator(_once)] = Field(
        default_factory=lambda: list(SERVED),
        min_length=1,
        max_length=len(SERVED),
        description=" | ".join(SERVED),
        examples=[["regrad", "rag"]],
    )
