"""The bodies of requests: fields, their bounds, and what is read from them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Annotated, Any, Self, TypeVar

import annotated_types
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function

from regrad.data.questions import MOST_CHOICES, QuestionKind
from regrad.errors import MethodError
from regrad.methods.base import Contributions, MethodInfo
from regrad.registry import Registry
from serve_app.config import OFFERED, LimitsConfig
from serve_app.http.calls import Client
from serve_app.messages import Ask, Sampling

Body = TypeVar("Body", bound=BaseModel)

MAX_PASSAGE_ID_CHARACTERS = 512


class Strict(BaseModel):
    """A request body: unknown fields and values of the wrong JSON type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _usable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds a character that is not valid Unicode") from error
    if "\x00" in text:
        raise ValueError("holds a NUL character")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _different(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("names something twice")
    return names


def method_name(offered: Registry[MethodInfo]) -> Any:
    """The type of a field that names one of these methods; other names are refused with their list."""

    def known(name: str) -> str:
        try:
            return offered[name].name
        except MethodError as error:
            raise ValueError(str(error)) from error

    schema = WithJsonSchema({"type": "string", "enum": list(offered), "title": "Method"})
    return Annotated[str, AfterValidator(known), schema]


def default_method(offered: Registry[MethodInfo]) -> str:
    """`regrad`, or the first method if that is not offered."""
    return "regrad" if "regrad" in offered else next(iter(offered))


ValidText = Annotated[str, AfterValidator(_usable)]
QuestionText = Annotated[ValidText, AfterValidator(_not_blank)]
PassageId = Annotated[ValidText, Field(min_length=1, max_length=MAX_PASSAGE_ID_CHARACTERS)]
PassageIds = Annotated[
    list[PassageId], Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(_different)
]
Stops = Annotated[list[Annotated[ValidText, Field(min_length=1, max_length=64)]], Field(max_length=4)]
StringOrStops = Annotated[
    Stops,
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 64},
                {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 64}, "maxItems": 4},
            ]
        }
    ),
]


Choices = Annotated[
    list[Annotated[ValidText, AfterValidator(_not_blank), Field(min_length=1, max_length=2000)]],
    Field(min_length=2, max_length=MOST_CHOICES, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_different),
]


class Only:
    """Marks a field that would change the answer in a way that is not offered: only neutral values are accepted."""

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check before anything else."""
        return no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The accepted values."""
        return {"enum": list(self._values)}

    def _check(self, value: Any) -> Any:
        # In Python True == 1, but the two are different values in JSON.
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in self._values):
            raise ValueError("not supported here; leave it out")
        return value


def tailored(body: type[Body], limits: LimitsConfig, offered: Registry[MethodInfo]) -> type[Body]:
    """A request body with this server's limits on those of its fields that have one, and with its methods."""
    bounds: Mapping[str, Any] = {
        "question": annotated_types.MaxLen(limits.max_question_characters),
        "prompt": annotated_types.MaxLen(limits.max_question_characters),
        "messages": annotated_types.MaxLen(limits.max_turns + 1),
        "k": annotated_types.Le(limits.max_k),
        "gamma": annotated_types.Le(limits.max_gamma),
        "max_new_tokens": annotated_types.Le(limits.max_new_tokens),
        "max_tokens": annotated_types.Le(limits.max_new_tokens),
        "max_completion_tokens": annotated_types.Le(limits.max_new_tokens),
        "passage_ids": annotated_types.MaxLen(limits.max_k),
    }
    fields: dict[str, Any] = {}
    for name, info in body.model_fields.items():
        if name in bounds:
            bounded = copy(info)
            bounded.metadata = [*info.metadata, bounds[name]]
            if isinstance(info.default, int | float):
                bounded.default = min(info.default, bounds[name].le)
            fields[name] = (info.annotation, bounded)
    return create_model(body.__name__, __base__=body, **fields, **_method_fields(body, offered))


def _method_fields(body: type[BaseModel], offered: Registry[MethodInfo]) -> dict[str, Any]:
    """The fields of a body that name methods, for these methods."""
    name = method_name(offered)
    default = default_method(offered)
    listed = " | ".join(offered)
    several = Field(
        default_factory=lambda: list(offered),
        min_length=1,
        max_length=len(offered),
        description=listed,
        examples=[list(offered)[:2]],
    )
    fields: dict[str, Any] = {
        "methods": (Annotated[list[name], AfterValidator(lambda names: list(dict.fromkeys(names)))], several),  # type: ignore[valid-type]
        "method": (name, Field(default, description=listed)),
        "model": (str, Field(default, max_length=200, description=f"the method: {listed}")),
    }
    if "model" in body.model_fields:  # OpenAI's, where a method of ours goes instead of it
        fields["method"] = (name | None, Field(None, description="instead of `model`"))
    return {key: field for key, field in fields.items() if key in body.model_fields}


class Options(Strict):
    """The fields of a question, the same for every method."""

    question: QuestionText = Field(
        min_length=1, description="the question, in plain text", examples=["Where was Ada Lovelace born?"]
    )
    k: int = Field(3, ge=1, description="how many passages to retrieve")
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False, description="scale of the update (regrad methods)")
    max_new_tokens: int = Field(20, ge=1)
    temperature: float = Field(0.0, ge=0, le=2, allow_inf_nan=False, description="0: greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63, description="makes sampling repeatable")
    kind: QuestionKind | None = Field(
        None, description="how it is answered: freely, with yes or no, or with the letter of one of the `choices`"
    )
    choices: Choices | None = Field(
        None, description="the options' texts; of a yes-no question, the words to answer with"
    )
    stop: Stops | None = Field(None, description="strings that end the answer; default: the model's")
    passage_ids: PassageIds | None = Field(
        None, description="use these passages instead of retrieving; k is ignored", examples=[["p-17", "p-4"]]
    )
    release: ValidText | None = Field(
        None, min_length=1, max_length=100, description="answer from this release, regardless of the shares"
    )
    contributions: Contributions | None = Field(None, description="measure each passage's part in the answer")
    stream: bool = Field(False, description="server-sent events instead of one body")

    @model_validator(mode="after")
    def _kind_has_its_choices(self) -> Self:
        if self.kind == "choice" and not self.choices:
            raise ValueError("kind 'choice' needs `choices`, the texts of the options")
        if self.kind == "open" and self.choices:
            raise ValueError("an open question has no `choices`: leave them out, or set `kind` to choice or yes-no")
        return self

    def ask(self, method: str, client: Client) -> Ask:
        """The question as the gateway gets it."""
        return Ask(
            question=self.question,
            method=method,
            k=self.k,
            gamma=self.gamma,
            sampling=Sampling(
                self.max_new_tokens, self.temperature, self.top_p, self.seed, tuple(self.stop) if self.stop else None
            ),
            passage_ids=None if self.passage_ids is None else tuple(self.passage_ids),
            release=self.release,
            contributions=self.contributions,
            kind=self.kind or ("choice" if self.choices else "open"),
            choices=tuple(text.lower() if self.kind == "yes-no" else text for text in self.choices or ()),
            request_id=client.request_id,
            seconds=client.seconds,
            traceparent=client.traceparent,
        )


class AnswerRequest(Options):
    """The body of `POST /v1/answer`."""

    method: str = "regrad"


class CompareRequest(Options):
    """The body of `POST /v1/compare`: one question, several methods side by side."""

    methods: list[str] = Field(default_factory=lambda: list(OFFERED))
