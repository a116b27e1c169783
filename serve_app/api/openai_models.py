"""The OpenAI-compatible interface: the bodies of `/v1/chat/completions` and `/v1/completions`.

What would change the answer in a way that is not offered is refused; what changes nothing is accepted and ignored.
The last fields are this server's own: the official client sends them by its `extra_body`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from regrad.methods import SERVED
from serve_app.api.fields import MethodName, Only, PassageIds, Question, Strict, StringOrStops, Text
from serve_app.messages import Contributions

DEFAULT_MODEL = "regrad"
_PARTS = {"type": "array", "items": {"type": "object", "required": ["type", "text"]}}
_IGNORED: Any = Field(None, description="accepted and ignored")


def _joined(content: Any) -> Any:
    """Content that comes as a list of text parts as one string."""
    if not isinstance(content, list):
        return content
    return "\n".join(_part(part) for part in content)


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind != "text":
        raise ValueError(f"only parts of type 'text' are understood, found {kind!r:.40}")
    if set(part) != {"type", "text"} or not isinstance(part["text"], str):
        raise ValueError("a text part has a type and a text, which is a string")
    return str(part["text"])


Content = Annotated[Text, BeforeValidator(_joined), WithJsonSchema({"anyOf": [{"type": "string"}, _PARTS]})]


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Any = _IGNORED
    refusal: Annotated[Any, Only(None)] = None
    annotations: Annotated[Any, Only(None, [])] = None
    audio: Annotated[Any, Only(None)] = None
    function_call: Annotated[Any, Only(None)] = None
    tool_calls: Annotated[Any, Only(None, [])] = None


class StreamOptions(Strict):
    """What a stream contains besides the answer."""

    include_usage: bool | None = Field(None, description="one more chunk at the end, with the usage")
    include_obfuscation: Any = _IGNORED


class Completing(Strict):
    """What both kinds of completion can be asked with."""

    model: str = Field(DEFAULT_MODEL, max_length=200, description="the method: " + " | ".join(SERVED))
    stream: bool | None = Field(None, description="server-sent events instead of one body")
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="default 0: greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="makes sampling repeatable")
    stop: StringOrStops | None = Field(None, description="strings that end the answer; default: the model's")

    n: Annotated[Any, Only(None, 1)] = None
    presence_penalty: Annotated[Any, Only(None, 0)] = None
    frequency_penalty: Annotated[Any, Only(None, 0)] = None
    logit_bias: Annotated[Any, Only(None, {})] = None
    user: Any = _IGNORED
    metadata: Any = _IGNORED
    store: Any = _IGNORED
    service_tier: Any = _IGNORED
    safety_identifier: Any = _IGNORED
    prompt_cache_key: Any = _IGNORED
    prompt_cache_options: Any = _IGNORED
    prompt_cache_retention: Any = _IGNORED

    method: MethodName | None = Field(None, description="instead of `model`")
    k: int = Field(3, ge=1, description="how many passages to retrieve")
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False, description="scale of the update (regrad methods)")
    passage_ids: PassageIds | None = Field(None, description="use these passages instead of retrieving")
    release: Text | None = Field(
        None, min_length=1, max_length=100, description="answer from this release, whatever the shares"
    )
    contributions: Contributions | None = Field(None, description="measure each passage's part in the answer")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Completing:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes only with stream: true")
        return self


class ChatRequest(Completing):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(
        min_length=1,
        description="the last one is the user's question, which passages are retrieved for",
        examples=[[{"role": "user", "content": "Where was Ada Lovelace born?"}]],
    )
    max_completion_tokens: int | None = Field(None, ge=1)

    logprobs: Annotated[Any, Only(None, False)] = None
    top_logprobs: Annotated[Any, Only(None, 0)] = None
    response_format: Annotated[Any, Only(None, {"type": "text"})] = None
    tools: Annotated[Any, Only(None, [])] = None
    tool_choice: Annotated[Any, Only(None, "none", "auto")] = None
    parallel_tool_calls: Any = _IGNORED
    functions: Annotated[Any, Only(None, [])] = None
    function_call: Annotated[Any, Only(None, "none", "auto")] = None
    modalities: Annotated[Any, Only(None, ["text"])] = None
    audio: Annotated[Any, Only(None)] = None
    moderation: Annotated[Any, Only(None)] = None
    prediction: Any = _IGNORED
    reasoning_effort: Annotated[Any, Only(None, "none")] = None
    verbosity: Annotated[Any, Only(None, "medium")] = None
    web_search_options: Annotated[Any, Only(None)] = None


class CompletionRequest(Completing):
    """The body of `POST /v1/completions`."""

    prompt: Question = Field(
        min_length=1, description="goes to the model as it is", examples=["Ada Lovelace was born in"]
    )

    best_of: Annotated[Any, Only(None, 1)] = None
    echo: Annotated[Any, Only(None, False)] = None
    logprobs: Annotated[Any, Only(None)] = None
    suffix: Annotated[Any, Only(None, "")] = None
