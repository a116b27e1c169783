"""Text to token ids. A control token that a text seems to contain never becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from regrad.errors import ModelError, TokenOutOfVocabulary
from regrad.prompts import PromptFormat
from regrad.text import in_one_line

_PLACE = "TheUsersMessageStandsHere"
_ONE_AT_A_TIME = Lock()


def token_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat, text: str, controls: bool = False
) -> list[int]:
    """Token ids of a text, with nothing added around it.

    What looks like a control token in it, such as `</s>`, is text like any other: a passage or a question cannot end
    its own part of a prompt. Such tokens keep their meaning only if `controls` is set, or if the prompts' own templates
    are written with them.
    """
    return token_ids_of(tokenizer, prompts, [text], controls)[0]


def token_ids_of(
    tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat, texts: Sequence[str], controls: bool = False
) -> list[list[int]]:
    """As `token_ids`, of several texts at once: a call of the tokenizer costs more than a short text in it."""
    return _encoded(tokenizer, texts, controls or _hold_controls(tokenizer, prompts))


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    text: str,
    raw: bool = False,
    controls: bool = False,
) -> list[int]:
    """Token ids of what a model answers: its start token and the text; with `prompts.chat`, a chat of one message.

    The ids of a chat are those of the model's own chat template, except that control tokens in the text are text.
    `raw` leaves the chat template out. Raises `ModelError` if the tokenizer has no usable one.
    """
    return prompt_ids_of(tokenizer, prompts, [text], raw, controls)[0]


def prompt_ids_of(
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    texts: Sequence[str],
    raw: bool = False,
    controls: bool = False,
) -> list[list[int]]:
    """As `prompt_ids`, of several texts at once."""
    if raw or not has_chat(tokenizer, prompts):
        start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        return [start + ids for ids in token_ids_of(tokenizer, prompts, texts, controls)]
    frame = _chat_frame(tokenizer, prompts)
    messages = [frame.before + text.strip() + frame.after for text in texts]
    return [[*frame.start, *inside, *frame.end] for inside in _encoded(tokenizer, messages, controls)]


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], controls: bool) -> list[list[int]]:
    if not texts:
        return []
    # Whether control tokens are split is a state of the tokenizer, set by each call: of two threads' calls at once, one
    # could read as the other asked, and a user's control token become a real one.
    with _ONE_AT_A_TIME:
        found = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=not controls, verbose=False)
    return [list(ids) for ids in found["input_ids"]]


def check_known(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], vocabulary: int) -> None:
    """Raise `TokenOutOfVocabulary` for a token that the model has no row for."""
    # Found here, it concerns one text. In a forward pass it would end every row of the batch, and on a GPU the process:
    # an index error there is an assertion of the device.
    if ids and max(ids) >= vocabulary:
        token = str(tokenizer.convert_ids_to_tokens(max(ids)))
        raise TokenOutOfVocabulary(
            f"the text has the token {token!r} (id {max(ids)}), but the model has only {vocabulary} rows of "
            "embeddings: its tokenizer was extended, the model was not",
            token=token,
            id=max(ids),
            vocabulary=vocabulary,
        )


def has_chat(tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat) -> bool:
    """Whether prompts are put into the model's chat template; with `auto`, whether it has one."""
    return bool(tokenizer.chat_template) if prompts.chat == "auto" else prompts.chat


def turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The control token that the chat template writes after an answer, such as `<|im_end|>`; empty if there is none."""
    if not tokenizer.chat_template:
        return []
    messages = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": _PLACE}]
    try:
        written = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (ValueError, TypeError, TemplateError):
        return []  # a template for something else; if prompts need it, they say what is wrong with it
    after = written.rpartition(_PLACE)[2].lstrip()
    found = [token for token in _controls(tokenizer) if after.startswith(token)]
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in sorted(found, key=len)[-1:]]


class _Frame(NamedTuple):
    """A chat template around a message: token ids, and next to the message the text up to the nearest control token."""

    # That text is tokenized together with the message, as it would be in the whole chat: a tokenizer may join the last
    # characters of one with the first of the other.
    start: list[int]
    before: str
    after: str
    end: list[int]


@lru_cache(maxsize=8)
def _chat_frame(tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat) -> _Frame:
    # 1. The template, written around a placeholder.
    messages = [{"role": "system", "content": prompts.system}] if prompts.system else []
    messages.append({"role": "user", "content": _PLACE})
    try:
        template_arguments = dict(prompts.chat_arguments)
        written = str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_arguments)
        )
    except (ValueError, TypeError, TemplateError) as error:
        reason = in_one_line(error, 200)
        raise ModelError(
            f"the model's chat template cannot be used: {reason}; set `prompts.chat: false`",
            code="chat_template_failed",
            reason=reason,
        ) from error
    if written.count(_PLACE) != 1:
        raise ModelError(
            "the model's chat template does not write the user's message exactly once; set `prompts.chat: false`",
            code="message_not_written_once",
            times=written.count(_PLACE),
        )

    # 2. Cut at the control tokens nearest to the message.
    before, _, after = written.partition(_PLACE)
    after += prompts.answer_start
    controls = _controls(tokenizer)
    first = max((before.rfind(control) + len(control) for control in controls if control in before), default=0)
    last = min((after.find(control) for control in controls if control in after), default=len(after))
    start, end = _encoded(tokenizer, [before[:first], after[last:]], controls=True)
    return _Frame(start, before[first:], after[:last], end)


@lru_cache(maxsize=8)  # every text asks, and the templates do not change
def _hold_controls(tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat) -> bool:
    return any(control in template for control in _controls(tokenizer) for template in prompts.templates())


def _controls(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
