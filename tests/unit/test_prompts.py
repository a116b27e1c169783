from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Asked:
    question: str
    kind: Any = "open"
    choices: tuple[str, ...] = ()


def test_an_open_question_is_asked_as_ever() -> None:
    for prompts in (PromptFormat(), LAB_PROMPTS):
        for passages in ([], [PASSAGE]):
            assert prompts.prompt_for(Asked("Who?"), passages) == prompts.prompt("Who?", passages)
            assert prompts.prompt("Who?", passages) == prompts.context_text(passages) + "Question: Who?\nAnswer:"


def test_a_yes_no_question_names_its_words() -> None:
    assert PromptFormat().prompt_for(Asked("Is it?", "yes-no")) == (
        "Question: Is it?\nAnswer with yes or no only.\nAnswer:"
    )
    asked = Asked("Is it?", "yes-no", ("yes", "no", "maybe"))
    assert "Answer with yes, no or maybe only." in PromptFormat().prompt_for(asked)


def test_a_choice_lists_its_options() -> None:
    asked = Asked("Which {one}?", "choice", ("aspirin", "{b}", "x"))
    assert PromptFormat().prompt_for(asked, [PASSAGE]) == (
        "Passage 1: Ada Lovelace\nShe wrote the first program.\n"
        "Question: Which {one}?\nA. aspirin\nB. {b}\nC. x\nAnswer with the letter only: A, B or C.\nAnswer:"
    )


@pytest.mark.parametrize("kind", ["open", "yes-no", "choice"])
@pytest.mark.parametrize("passages", [[], [PASSAGE]])
def test_the_engineered_style_adds_instructions_and_loses_nothing(kind: str, passages: list[Passage]) -> None:
    asked, prompts = Asked("Is it?", kind, ("yes", "no")), PromptFormat()
    plain, engineered = prompts.prompt_for(asked, passages), prompts.prompt_for(asked, passages, "pe")
    question = plain.removeprefix(prompts.context_text(passages))
    assert engineered.endswith(f"\n{question}") and engineered != plain
    assert prompts.context_text(passages) in engineered
    assert ("Answer from the passages." in engineered) == bool(passages)


def test_every_template_can_be_set() -> None:
    settings = {
        "yes_no": "{words}? {question}",
        "choice": "{question}{options}",
        "option": "[{label}:{text}]",
        "default": {"choice": "{question}|{context}|{labels}", "yes_no_alone": "<{question}>"},
        "pe": {"open": "{context}!{question}"},
    }
    prompts = parse_settings(PromptFormat, settings, "test")
    assert prompts.prompt_for(Asked("Q", "yes-no")) == "<yes or no? Q>"
    assert prompts.prompt_for(Asked("Q", "choice", ("x", "y")), [PASSAGE]).startswith("Q[A:x][B:y]|Passage 1:")
    assert prompts.prompt("Q", [PASSAGE], "pe").endswith("!Question: Q\nAnswer:")
    assert prompts.prompt("Q", [], "pe") == "Question: Q\nAnswer:"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"yes_no": "{words}"}, "yes_no"),
        ({"choice": "{question}{text}"}, "choice"),
        ({"option": "{label}"}, "option"),
        ({"default": {"open": "{context}"}}, "default.open"),
        ({"default": {"open_alone": "{context}{question}"}}, "default.open_alone"),
        ({"pe": {"open": "{question}{labels}"}}, "pe.open"),
        ({"pe": {"opne": "{question}"}}, "did you mean 'pe.open'"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_settings(PromptFormat, settings, "test")


OLD = {
    "passage": "{title}\n{text}",
    "atom": "{passage}",
    "context": "Passage {index}: {passage}\n",
    "question": "Question: {question}\nAnswer:",
    "answer": " {answer}",
    "stop": "\n",
}


def test_a_format_without_the_new_settings_is_written_as_it_was_before_them() -> None:
    assert PromptFormat().model_dump(mode="json") == OLD
    assert ModelConfig(path="x").model_dump(mode="json")["prompts"] == OLD
    assert PromptFormat.model_validate(OLD) == PromptFormat()


def test_what_was_set_is_written_and_read_again() -> None:
    prompts = parse_settings(
        PromptFormat, {"chat": True, "chat_arguments": {"a": 1}, "pe": {"open": "{question}"}}, "x"
    )
    written = json.loads(prompts.model_dump_json())
    assert set(written) - set(OLD) == {"chat", "chat_arguments", "pe"}
    assert PromptFormat.model_validate(written) == prompts
    assert hash(prompts) == hash(PromptFormat.model_validate(written))
