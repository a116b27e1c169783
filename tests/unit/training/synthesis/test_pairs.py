"""Reading what a model wrote: its own template, and the habits of models that were trained on others."""

from __future__ import annotations

import pytest

from regrad.data.augmented import Pair
from regrad.lab.wording import LAB_PROMPTS
from regrad.prompts import PromptFormat
from regrad.training.synthesis.writer import PairParser

PAIR = Pair("Where was Ada born?", "Girton")


@pytest.mark.parametrize(
    "text",
    [
        " Where was Ada born?\nAnswer: Girton\n",
        " Where was Ada born?\nAnswer: Girton",
        "Question: Where was Ada born?\nAnswer: Girton\nQuestion: And now?\nAnswer: No",
        "Here is a question:\n\nQuestion: Where was Ada born?\nAnswer: Girton\n",
        "**Question:** Where was Ada born?\n\n**Answer:** Girton\n\nI hope this helps!",
        "Q: Where was Ada born?\nA: Girton\n",
        "1. Question: Where was Ada born?\n   Answer: Girton\n2. Question: Who is Ada?",
        "Question 1: Where was Ada born?\nAnswer 1: Girton\n",
        "question: Where was Ada born? Answer: Girton\n",
        "Where was Ada born?\nAnswer:\nGirton\n",
        "**Where was Ada born?**\nAnswer: **Girton**\n",
    ],
)
def test_a_pair_is_read(text: str) -> None:
    assert PairParser(LAB_PROMPTS).parse(text) == PAIR


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Where was Ada born?",
        "\nAnswer: Girton\n",
        "Where?\nAnswer:",
        "Where?\nAnswer: \n",
        "One.\nTwo.\nAnswer: x\n",
    ],
)
def test_what_is_no_pair_is_none(text: str) -> None:
    assert PairParser(LAB_PROMPTS).parse(text) is None


def test_markers_of_the_models_own_template_are_understood() -> None:
    prompts = PromptFormat(question="Frage: {question}\nAntwort:", stop="\n")
    text = "Frage: Wo wurde Ada geboren?\nAntwort: Girton\nFrage: Wer"
    assert PairParser(prompts).parse(text) == Pair("Wo wurde Ada geboren?", "Girton")


def test_a_words_beginning_is_no_marker() -> None:
    assert PairParser(LAB_PROMPTS).parse("Is plan A: good or bad?\nAnswer: good\n") == Pair(
        "Is plan A: good or bad?", "good"
    )


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("Where?\nAnswer: Girton\n", True),
        ("Where?\nAnswer:\n", False),
        ("Where?\nAnswer: Gir", False),
        ("Where?\n", False),
    ],
)
def test_writing_ends_after_the_answer(text: str, finished: bool) -> None:
    assert PairParser(LAB_PROMPTS).finished(text) is finished
