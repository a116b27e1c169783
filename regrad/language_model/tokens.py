"""Text to token ids. What somebody wrote never becomes a control token."""

from __future__ import annotations

from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from regrad.prompts import PromptFormat


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


@lru_cache(maxsize=8)
def _hold_controls(tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat) -> bool:
    controls = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    templates = (prompts.passage, prompts.atom, prompts.context, prompts.question, prompts.answer)
    return any(control in template for control in controls for template in templates)
