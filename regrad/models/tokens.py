"""Text to token ids. What somebody wrote never becomes a control token."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from regrad.errors import ModelError
from regrad.prompts import PromptFormat

_PLACE = "TheUsersMessageStandsHere"


def token_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat, text: str, controls: bool = False
) -> list[int]:
    """Token ids of a text, with nothing put around it.

    What looks like a control token in it, `</s>` say, is text like any other: a passage or a question cannot end its
    own part of a prompt. Only where `controls` is set, or where the model's own templates are written with such tokens,
    do they keep their meaning.
    """
    kept = controls or _hold_controls(tokenizer, prompts)
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not kept))


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    text: str,
    raw: bool = False,
    controls: bool = False,
) -> list[int]:
    """Token ids of what a model answers to: its start token and the text; with `prompts.chat`, a chat of one message.

    The ids of a chat are those of the model's own chat template, but for control tokens that the text itself seems to
    hold: those are text. `raw` leaves the chat template out. Raises `ModelError` if the tokenizer has none that can be
    used.
    """
    if raw or not has_chat(tokenizer, prompts):
        start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        return start + token_ids(tokenizer, prompts, text, controls)
    frame = _frame(tokenizer, prompts)
    message = frame.before + text.strip() + frame.after
    inside = tokenizer.encode(message, add_special_tokens=False, split_special_tokens=not controls)
    return [*frame.start, *inside, *frame.end]


def has_chat(tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat) -> bool:
    """Whether prompts are put into the model's chat template; with `auto`, whether it has one."""
    return bool(tokenizer.chat_template) if prompts.chat == "auto" else prompts.chat


class _Frame(NamedTuple):
    """A chat template around a message: token ids, and beside the message the text up to the nearest control token.

    That text is read together with the message, as it is where a whole chat is read at once.
    """

    start: list[int]
    before: str
    after: str
    end: list[int]


@lru_cache(maxsize=8)
def _frame(tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat) -> _Frame:
    written = _chat(tokenizer, prompts)
    if written.count(_PLACE) != 1:
        raise ModelError("the model's chat template does not write the user's message once; set `prompts.chat: false`")
    before, _, after = written.partition(_PLACE)
    after += prompts.answer_start
    controls = _controls(tokenizer)
    first = max((before.rfind(control) + len(control) for control in controls if control in before), default=0)
    last = min((after.find(control) for control in controls if control in after), default=len(after))
    ends = (tokenizer.encode(text, add_special_tokens=False) for text in (before[:first], after[last:]))
    start, end = (list(ids) for ids in ends)
    return _Frame(start, before[first:], after[:last], end)


def _chat(tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat) -> str:
    messages = [{"role": "system", "content": prompts.system}] if prompts.system else []
    messages.append({"role": "user", "content": _PLACE})
    try:
        written = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **dict(prompts.chat_arguments)
        )
    except (ValueError, TypeError, TemplateError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the model's chat template cannot be used: {reason}; set `prompts.chat: false`") from error
    return str(written)


@lru_cache(maxsize=8)
def _hold_controls(tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat) -> bool:
    return any(control in template for control in _controls(tokenizer) for template in prompts.templates())


def _controls(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
