"""What the OpenAPI description says of responses: every error that can come, and the event streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serve_app.http.errors import ErrorResponse

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

Errors have one form, `{"error": {"type", "field", "message", "code", "param"}}`, whatever the status. Every response
has the header `x-request-id`; the server's log knows the request by it (an odd one with `_` for odd characters).
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
    404: "nothing goes by that name (model, release, passage), or no passage matches the question",
    408: "the body did not come in time",
    413: "the body is larger than the limit, or the prompt longer than the context (the message has the counts)",
    415: "the body's content type is not application/json",
    **_READING,
}

ANSWER_EVENTS = """event: passages
data: {"passages":[{"id":"p-17","title":"Ada","text":"...","score":7.1}],"milliseconds":2.5}

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
MODEL_PROBLEMS = _problems({404: "there is no such model; the message lists those that there are", 422: _READING[422]})


def with_keys(description: dict[str, Any], is_open: Callable[[str], bool]) -> dict[str, Any]:
    """An OpenAPI description in which all paths but the open ones ask for a key, in either way."""
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
