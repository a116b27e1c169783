"""The tiny model as others are asked: with a chat template in the style of Llama's, or without an end token."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from regrad.lab.wording import LAB_PROMPTS
from regrad.models.loading import LanguageModel

TEMPLATE = (
    "<s>{% if messages[0].role == 'system' %}system {{ messages[0].content }}, {{ date_string }}</s>{% endif %}"
    "{% for m in messages if m.role == 'user' %}<s> user\n{{ m.content | trim }}\n</s>{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant\n{% endif %}"
)


def chat(lm: LanguageModel, **settings: Any) -> LanguageModel:
    """The model with a chat template, and a format that uses it."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = TEMPLATE
    prompts = LAB_PROMPTS.model_copy(update={"chat": True, **settings})
    return replace(lm, tokenizer=tokenizer, config=lm.config.model_copy(update={"prompts": prompts}))


def without_end_token(lm: LanguageModel) -> LanguageModel:
    """The model, for which passages and answers end without an end token."""
    prompts = lm.config.prompts.model_copy(update={"end_token": False})
    return replace(lm, config=lm.config.model_copy(update={"prompts": prompts}))
