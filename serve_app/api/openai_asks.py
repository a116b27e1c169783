"""From a body of the OpenAI-compatible interface to the question that is answered."""

from __future__ import annotations

from regrad.config import LimitsConfig
from regrad.methods import SERVED
from serve_app.api.calling import Caller
from serve_app.api.errors import Problem, Refused, invalid
from serve_app.api.openai_models import ChatRequest, Completing, CompletionRequest, Message
from serve_app.messages import Ask, Sampling, Turn

# What OpenAI's own completions have if none is given.
COMPLETION_TOKENS = 16
_ROLES = {"developer": "system"}


def unknown_model(name: str) -> Refused:
    """A model that there is none of; the message lists those that there are."""
    message = f"there is no model {name!r:.60}; the models are {', '.join(SERVED)}"
    return Refused(Problem("not_found", 404, "model", message, code="model_not_found"))


def chat_ask(request: ChatRequest, limits: LimitsConfig, caller: Caller) -> Ask:
    """The last message is the question; what came before it are the turns."""
    *before, last = request.messages
    if last.role != "user":
        raise invalid("messages", "the last one must be the user's")
    if not last.content.strip():
        raise invalid("messages", "the question is blank")
    if len(last.content) > limits.max_question_characters:
        raise invalid("messages", f"the question is longer than {limits.max_question_characters} characters")
    if request.max_tokens and request.max_completion_tokens not in (None, request.max_tokens):
        raise invalid("max_tokens", "differs from max_completion_tokens; give one of them")
    tokens = request.max_completion_tokens or request.max_tokens or limits.max_new_tokens
    return _ask(request, last.content, tokens, tuple(_turn(message, limits) for message in before), False, caller)


def completion_ask(request: CompletionRequest, limits: LimitsConfig, caller: Caller) -> Ask:
    """The prompt goes to the model as it is."""
    tokens = request.max_tokens or min(COMPLETION_TOKENS, limits.max_new_tokens)
    return _ask(request, request.prompt, tokens, (), True, caller)


def _turn(message: Message, limits: LimitsConfig) -> Turn:
    if len(message.content) > limits.max_turn_characters:
        raise invalid("messages", f"one is longer than {limits.max_turn_characters} characters")
    return Turn(_ROLES.get(message.role, message.role), message.content)


def _ask(
    request: Completing, question: str, max_new_tokens: int, turns: tuple[Turn, ...], raw: bool, caller: Caller
) -> Ask:
    if request.model not in SERVED:
        raise unknown_model(request.model)
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=None if request.seed is None else request.seed % 2**63,
        stop=tuple(request.stop) if request.stop else None,
    )
    return Ask(
        question=question,
        method=request.method or request.model,
        k=request.k,
        gamma=request.gamma,
        sampling=sampling,
        passage_ids=None if request.passage_ids is None else tuple(request.passage_ids),
        turns=turns,
        raw=raw,
        release=request.release,
        contributions=request.contributions,
        request_id=caller.request_id,
        seconds=caller.seconds,
        traceparent=caller.traceparent,
    )
