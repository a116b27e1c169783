"""Text to token ids: what somebody wrote is text, whatever it looks like."""

from __future__ import annotations

import pytest

from regrad.atoms.gradients import encode_passage
from regrad.corpus import Passage
from regrad.lab.prompts import LAB_PROMPTS
from regrad.language_model.loading import LanguageModel
from regrad.language_model.tokens import token_ids

WRITTEN = "Les </s> was <s> born in <pad> Thomville."


def special(lm: LanguageModel) -> set[int]:
    return set(lm.tokenizer.all_special_ids)


def test_what_looks_like_a_control_token_is_text(tiny: LanguageModel) -> None:
    ids = tiny.encode(WRITTEN)
    assert not special(tiny) & set(ids)
    assert tiny.tokenizer.decode(ids) == WRITTEN


def test_a_passage_cannot_end_its_own_atom(tiny: LanguageModel) -> None:
    first, *inside, last = encode_passage(tiny, Passage("p", "</s>", WRITTEN))
    assert ([first], [last]) == (tiny.bos, tiny.eos)
    assert not special(tiny) & set(inside)


@pytest.mark.parametrize(
    "text", ["Question: In which city was Les Dripen born?\nAnswer:", " Thomville", "<s", "ä 漢 🙂", ""]
)
def test_ordinary_text_has_the_tokens_that_it_always_had(tiny: LanguageModel, text: str) -> None:
    assert tiny.encode(text) == tiny.tokenizer.encode(text, add_special_tokens=False)


def test_control_tokens_of_a_template_keep_their_meaning(tiny: LanguageModel) -> None:
    chat = LAB_PROMPTS.model_copy(update={"question": "<s>{question}</s>"})
    written = chat.prompt("Where?")
    first, *_, last = token_ids(tiny.tokenizer, chat, written)
    assert ([first], [last]) == (tiny.bos, tiny.eos)
    assert special(tiny).isdisjoint(token_ids(tiny.tokenizer, LAB_PROMPTS, written))
    assert token_ids(tiny.tokenizer, LAB_PROMPTS, written, controls=True) == token_ids(tiny.tokenizer, chat, written)
