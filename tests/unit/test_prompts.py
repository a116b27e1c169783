from __future__ import annotations

import pytest

from regrad.config import ModelConfig, builtin_config
from regrad.corpus import Passage
from regrad.errors import ConfigError
from regrad.lab.prompts import LAB_PROMPTS
from regrad.prompts import PromptFormat
from regrad.settings import load_settings, parse_settings

PASSAGE = Passage("x", "Ada Lovelace", "She wrote the first program.")


def test_question_alone() -> None:
    assert PromptFormat().prompt("Who?") == "Question: Who?\nAnswer:"


def test_passages_are_numbered_in_the_order_given() -> None:
    other = Passage("y", "Alan Turing", "He asked.")
    expected = (
        "Passage 1: Ada Lovelace\nShe wrote the first program.\nPassage 2: Alan Turing\nHe asked.\n"
        "Question: Who?\nAnswer:"
    )
    assert PromptFormat().prompt("Who?", [PASSAGE, other]) == expected


def test_atom_and_prompt_hold_the_same_passage_text() -> None:
    for prompts in (PromptFormat(), LAB_PROMPTS):
        text = prompts.passage_text(PASSAGE)
        assert text in prompts.atom_text(PASSAGE)
        assert text in prompts.prompt("Who?", [PASSAGE])


def test_braces_in_a_passage_are_text() -> None:
    odd = Passage("z", "{title}", "a {passage} {0}")
    assert "{title}\na {passage} {0}" in PromptFormat().prompt("{question}", [odd])


@pytest.mark.parametrize("template", ["no field", "{titel}", "{passage} {other}"])
def test_a_template_with_wrong_fields_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="context"):
        parse_settings(PromptFormat, {"context": template}, "test")


def test_the_shipped_lab_configuration_is_the_format_the_base_was_trained_on() -> None:
    assert load_settings(ModelConfig, builtin_config("models/lab.yaml")).prompts == LAB_PROMPTS
