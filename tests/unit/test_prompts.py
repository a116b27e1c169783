from __future__ import annotations

import json
from typing import Any

import pytest

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import ConfigError
from regrad.lab.wording import LAB_PROMPTS
from regrad.models.config import ModelConfig
from regrad.prompts import PromptFormat
from regrad.settings import builtin_config, load_settings, parse_settings
from tests.tools.refusals import refused

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


def wrong(key: str) -> dict[str, str]:
    return {"key": key, "problem": "wrong_fields", "near": ""}


@pytest.mark.parametrize("template", ["no field", "{titel}", "{passage} {other}"])
def test_a_template_with_wrong_fields_is_refused(template: str) -> None:
    with refused(ConfigError, "invalid", problems=[wrong("context")]):
        parse_settings(PromptFormat, {"context": template}, "test")


def test_the_shipped_lab_configuration_is_the_format_the_base_was_trained_on() -> None:
    assert load_settings(ModelConfig, builtin_config("models/lab.yaml")).prompts == LAB_PROMPTS


def asked_as(question: str, kind: Any = "open", choices: tuple[str, ...] = ()) -> Question:
    return Question("", question, (), kind, choices)


def test_an_open_question_is_asked_as_ever() -> None:
    for prompts in (PromptFormat(), LAB_PROMPTS):
        for passages in ([], [PASSAGE]):
            assert prompts.prompt_for(asked_as("Who?"), passages) == prompts.prompt("Who?", passages)
            assert prompts.prompt("Who?", passages) == prompts.context_text(passages) + "Question: Who?\nAnswer:"


def test_a_yes_no_question_names_its_words() -> None:
    assert PromptFormat().prompt_for(asked_as("Is it?", "yes-no")) == (
        "Question: Is it?\nAnswer with yes or no only.\nAnswer:"
    )
    asked = asked_as("Is it?", "yes-no", ("yes", "no", "maybe"))
    assert "Answer with yes, no or maybe only." in PromptFormat().prompt_for(asked)


def test_a_choice_lists_its_options() -> None:
    asked = asked_as("Which {one}?", "choice", ("aspirin", "{b}", "x"))
    assert PromptFormat().prompt_for(asked, [PASSAGE]) == (
        "Passage 1: Ada Lovelace\nShe wrote the first program.\n"
        "Question: Which {one}?\nA. aspirin\nB. {b}\nC. x\nAnswer with the letter only: A, B or C.\nAnswer:"
    )


@pytest.mark.parametrize("kind", ["open", "yes-no", "choice"])
@pytest.mark.parametrize("passages", [[], [PASSAGE]])
def test_the_engineered_style_adds_instructions_and_loses_nothing(kind: str, passages: list[Passage]) -> None:
    asked, prompts = asked_as("Is it?", kind, ("yes", "no")), PromptFormat()
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
    assert prompts.prompt_for(asked_as("Q", "yes-no")) == "<yes or no? Q>"
    assert prompts.prompt_for(asked_as("Q", "choice", ("x", "y")), [PASSAGE]).startswith("Q[A:x][B:y]|Passage 1:")
    assert prompts.prompt("Q", [PASSAGE], "pe").endswith("!Question: Q\nAnswer:")
    assert prompts.prompt("Q", [], "pe") == "Question: Q\nAnswer:"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"yes_no": "{words}"}, wrong("yes_no")),
        ({"choice": "{question}{text}"}, wrong("choice")),
        ({"option": "{label}"}, wrong("option")),
        ({"default": {"open": "{context}"}}, wrong("default.open")),
        ({"default": {"open_alone": "{context}{question}"}}, wrong("default.open_alone")),
        ({"pe": {"open": "{question}{labels}"}}, wrong("pe.open")),
        ({"demonstration": "{question}{stop}"}, wrong("demonstration")),
        ({"demonstrated": "{prompt}"}, wrong("demonstrated")),
        ({"pe": {"opne": "{question}"}}, {"key": "pe.opne", "problem": "extra_forbidden", "near": "pe.open"}),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], problem: dict[str, str]) -> None:
    with refused(ConfigError, "invalid", problems=[problem]):
        parse_settings(PromptFormat, settings, "test")


SHOWN = [
    Question("1", "Who {x}?", ("Ada", "Lovelace")),
    Question("2", "Is it?", ("no",), "yes-no"),
    Question("3", "Which?", ("B",), "choice", ("p", "q")),
]


def test_demonstrations_stand_before_everything_each_as_its_kind_is_asked() -> None:
    assert PromptFormat().prompt_for(asked_as("Where?"), [PASSAGE], demonstrations=SHOWN) == (
        "Question: Who {x}?\nAnswer: Ada\n"
        "Question: Is it?\nAnswer with yes or no only.\nAnswer: no\n"
        "Question: Which?\nA. p\nB. q\nAnswer with the letter only: A or B.\nAnswer: B\n"
        "Passage 1: Ada Lovelace\nShe wrote the first program.\n"
        "Question: Where?\nAnswer:"
    )


@pytest.mark.parametrize("kind", ["open", "yes-no", "choice"])
@pytest.mark.parametrize("style", ["default", "pe"])
@pytest.mark.parametrize("passages", [[], [PASSAGE]])
def test_the_prompt_behind_demonstrations_is_the_one_without(kind: str, style: Any, passages: list[Passage]) -> None:
    asked, prompts = asked_as("Is it?", kind, ("yes", "no")), PromptFormat()
    prompt = prompts.prompt_for(asked, passages, style)
    assert prompts.prompt_for(asked, passages, style, SHOWN) == prompts.demonstrations_text(SHOWN) + prompt
    assert prompts.prompt_for(asked, passages, style, []) == prompt


def test_a_demonstration_ends_as_answers_of_the_format_end() -> None:
    prompts = PromptFormat(stop="###", answer="<{answer}>")
    assert prompts.demonstrations_text(SHOWN[:1]) == "Question: Who {x}?\nAnswer:<Ada>###"


@pytest.mark.parametrize(
    ("settings", "reply"),
    [({}, " Paris"), ({"chat": True}, "Paris"), ({"chat": True, "answer_start": "Answer:"}, " Paris")],
)
def test_a_chat_models_turn_begins_without_a_space(settings: dict[str, Any], reply: str) -> None:
    assert PromptFormat(**settings).reply("Paris") == reply


def test_with_chat_a_demonstrations_answer_begins_as_the_models_turn_does() -> None:
    settings = {"question": "Question: {question}", "answer_start": "Answer:"}
    shown = "Question: Who {x}?\nAnswer: Ada\n"
    assert PromptFormat(chat=True, **settings).prompt_for(asked_as("Where?"), (), "default", SHOWN[:1]) == (
        f"{shown}Question: Where?"
    )
    plain = PromptFormat(**settings).demonstrations_text(SHOWN[:1])
    assert plain == "Question: Who {x}? Ada\n"


def test_the_templates_of_demonstrations_can_be_set() -> None:
    settings = {"demonstration": "- {question} =>{answer}\n", "demonstrated": "Examples\n{demonstrations}Now\n{prompt}"}
    prompts = parse_settings(PromptFormat, {"question": "{question}", **settings}, "test")
    written = prompts.prompt_for(asked_as("Where?"), (), "default", SHOWN[:1])
    assert written == "Examples\n- Who {x}? => Ada\nNow\nWhere?"
    assert set(settings.values()) <= set(prompts.templates())


def test_a_format_is_written_whole_and_read_again() -> None:
    prompts = parse_settings(
        PromptFormat, {"chat": True, "chat_arguments": {"a": 1}, "pe": {"open": "{question}"}}, "x"
    )
    written = json.loads(prompts.model_dump_json())
    assert written.keys() == PromptFormat.model_fields.keys()
    assert written["choice"] == PromptFormat().choice, "a default is written, too"
    assert PromptFormat.model_validate(written) == prompts
    assert hash(prompts) == hash(PromptFormat.model_validate(written))
