"""Reading the answer of a closed question, and cutting that of an open one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrad.evaluation.answer_parsing.answers import allowed_answers, cut_answer, parse_answer, prediction_of
from tests.tools.questions import posed

YES_NO = posed(("yes",), "yes-no")
MAYBE = posed(("yes",), "yes-no", ("Yes", "No", "Maybe"))
CHOICE = posed(("A",), "choice", ("Aspirin", "B-cell lymphoma", "The C-reactive protein", "no change"))

LISTED = "A: Aspirin\nB: B-cell lymphoma\nC: The C-reactive protein\nD: no change"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"),
        (" Yes.\n", "yes"),
        ("**No**", "no"),
        ("NO!", "no"),
        ('"no"', "no"),
        ("No, it was not.", "no"),
        ("Yes it does", "yes"),
        ("Answer: yes", "yes"),
        ("The answer is no.", "no"),
        ("The correct answer is: Yes", "yes"),
        ("He was born in 1950, she in 1961. So the answer is no.", "no"),
        ("The answer is not simple. He was first, so the answer is yes", "yes"),
        ("Yes, both are.\nSo the answer is: no", "no"),
        (r"It follows that \boxed{yes}", "yes"),
        ("yes\n\nQuestion: Is it?\nAnswer: no", "yes"),
        ("Yes, both are.\nQuestion: And this?\nAnswer: no", "yes"),
        ("Passage 1: it is\nAnswer: no", "no"),
        ("yes, yes", "yes"),
        ("No it was not", "no"),
        ("No because he died first", "no"),
        ("No. He was born in 1950. Yes-men were there.", "no"),
        ("Yes, there is no doubt.", "yes"),
        ("Yes. No other river is longer.", "yes"),
        ("No is the correct answer", "no"),
        ("He did not win the race, so the answer is no.", "no"),
        ("Answer: No.\nExplanation: there is no proof.", "no"),
        ("The answer to the question is yes.", "yes"),
        ("The answer is likely yes", "yes"),
        ("The answer would be no.", "no"),
        ("<answer>yes</answer>", "yes"),
        ('{"answer": "yes"}', "yes"),
        ("Based on the context, yes, he was.", "yes"),
        ("According to passage 2, no.", "no"),
        ("So, no.", "no"),
        ("No, that is wrong.", "no"),
        ("Yes, although the answer is not simple.", "yes"),
    ],
)
def test_a_yes_or_no_is_read(text: str, answer: str) -> None:
    assert parse_answer(YES_NO, text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "maybe",
        "yesterday",
        "nobody",
        "no-one knows",
        "No idea",
        "no answer",
        "yes or no",
        "Yes/No",
        "yes, no",
        "No and yes.",
        "yes no",
        "I think so",
        "There is no doubt that it is",
        "The answer is not yes",
        "not yes",
        "No one knows",
        "No. 5",
        "No evidence was found",
        "Answer: No evidence",
        "The answer is no longer known",
        "No. Yes.",
        "Yes; no",
        "Yes but no",
        "Yes is wrong",
        "I don't think the answer is yes",
        "If the answer is yes, he was first",
        "The wrong answer is yes",
        "The answer is yes. Or rather, the answer is no",
        "no\nyes",
        "Yes, that is incorrect.",
        "No, that's wrong: he was first. So yes.",
        "Yes, but only in some cases; generally no.",
        "It depends.",
    ],
)
def test_what_is_neither_yes_nor_no_is_not_guessed(text: str) -> None:
    assert parse_answer(YES_NO, text) is None


def test_the_allowed_words_are_the_questions_own() -> None:
    assert allowed_answers(MAYBE) == ("yes", "no", "maybe")
    assert parse_answer(MAYBE, "Maybe.") == "maybe"
    assert parse_answer(MAYBE, "yes, no, or maybe") is None
    assert (
        parse_answer(posed(("not entailed",), "yes-no", ("not entailed", "entailed")), "Not entailed.")
        == "not entailed"
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A", "A"),
        ("b", "B"),
        ("(C)", "C"),
        ("d.", "D"),
        ("**B**", "B"),
        ("B) B-cell lymphoma", "B"),
        ("B. because it grows", "B"),
        ("(b) it grows", "B"),
        ("B: it grows", "B"),
        ("B, as it grows", "B"),
        ("B is correct", "B"),
        ("A - Aspirin", "A"),
        ("A Aspirin", "A"),
        ("Option C", "C"),
        ("The answer is (D).", "D"),
        ("The correct option is B", "B"),
        ("Answer: Option A", "A"),
        (r"\boxed{C}", "C"),
        ("Aspirin", "A"),
        ("aspirin.", "A"),
        ("C-reactive protein", "C"),
        ("B-cell lymphoma. It grows.", "B"),
        ("The answer is no change.", "D"),
        ("A patient takes it, so the answer is B.", "B"),
        ("C\nQuestion: next?\nAnswer: A", "C"),
        ("A. It is not B) nor C) nor D)", "A"),
        ("A is wrong. The answer is B", "B"),
        ("B is the most likely answer", "B"),
        ("B is correct, A is wrong", "B"),
        ("B, not A", "B"),
        ("D. no change", "D"),
        ("D) No change is the best choice", "D"),
        ("Option A is correct", "A"),
        ("The answer is B because A is wrong", "B"),
        ("B. Aspirin, B-cell lymphoma, C-reactive protein and no change were named", "B"),
        (f"{LISTED}\nThe answer is C", "C"),
        ("The answer is definitely C.", "C"),
        ("The answer is most likely C.", "C"),
        ("The answer should be C.", "C"),
        ("The correct answer would be C", "C"),
        ("The answer to the question is C", "C"),
        ("Therefore, B is the correct answer.", "B"),
        ("I would choose B.", "B"),
        ("I'd go with (D) no change.", "D"),
        ("Aspirin is the best choice for this patient.", "A"),
        (r"\boxed{\text{C}}", "C"),
        ("Option A is incorrect. Option B is correct.", "B"),
        ("B\nA: weak\nC: toxic", "B"),
        ("It is the third one.\nC", "C"),
        ("<think>A is weak.</think> The answer is C", "C"),
        ('{"answer": "C", "confidence": 0.9}', "C"),
    ],
)
def test_a_choice_is_read(text: str, answer: str) -> None:
    assert parse_answer(CHOICE, text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E",
        "A patient should take it",
        "a cell",
        "a, cell",
        "B-cell leukaemia",
        "C-reactive",
        "D.C. is a city",
        "A or B",
        "A, C",
        "A/B",
        "(A) and (B)",
        "Both A and B",
        "Aspirin or no change",
        "A) Aspirin B) B-cell lymphoma C) The C-reactive protein D) no change",
        "the answer is not A",
        "Don't know",
        "A is wrong, B is right",
        "B is wrong",
        "B) is wrong",
        "B: incorrect",
        "B, which is not right",
        "A) Aspirin is wrong, so B",
        "B is not the answer",
        "B isn't right",
        "B is less likely",
        "B is a drug",
        "Option A is incorrect. C",
        "A. C",
        "A; C",
        "A is right and C is right",
        "I doubt that the answer is B",
        "The answer is A. No, the answer is C",
        "It is not true that the answer is B",
        LISTED,
        "A: Aspirin\nB: B-cell ly",
        "Aspirin\nB-cell lymphoma",
        "A\nB",
        "Answer: A\nAnswer: B",
        "A.\nExplanation: the answer is B",
        "Answer: (A) Aspirin\n(B) B-cell lymphoma",
        "The answer is A) Aspirin, B) B-cell lymphoma",
        "The option that is wrong is B",
        "I wouldn't choose B.",
        "The answer may be C",
        "Aspirin is a drug.",
        "A is correct. C is correct.",
    ],
)
def test_what_names_no_single_option_is_not_guessed(text: str) -> None:
    assert parse_answer(CHOICE, text) is None


def test_two_options_of_the_same_text_are_told_apart_by_label_only() -> None:
    twins = posed(("A",), "choice", ("Ely", "ely!", "Girton"))
    assert parse_answer(twins, "Ely") is None
    assert parse_answer(twins, "B. Ely") == "B"


def test_a_text_without_end_is_read_to_a_limit() -> None:
    assert parse_answer(YES_NO, "x " * 1_000_000 + "answer: yes") is None
    assert parse_answer(CHOICE, "answer is " * 10 + "B") == "B"
    assert parse_answer(CHOICE, "answer is " * 1_000 + "B") is None


@pytest.mark.parametrize("text", ["yes" + " " * 19_000 + "x", "B is " * 4_000, "so " * 6_000, "answer the " * 2_000])
def test_a_long_text_is_read_quickly(text: str) -> None:
    started = time.process_time()
    parse_answer(YES_NO, text)
    parse_answer(CHOICE, text)
    assert time.process_time() - started < 5, "it took 20 s where a pattern was quadratic"


@given(st.text(max_size=60) | st.lists(st.sampled_from(["A", "b)", "yes", "no", "answer is", "\n", "."])).map(" ".join))
def test_reading_never_fails_and_reads_its_own_answer_again(text: str) -> None:
    for question in (YES_NO, MAYBE, CHOICE):
        found = parse_answer(question, text)
        assert found is None or found in allowed_answers(question)
        assert found is None or parse_answer(question, found) == found


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        (" Paris. It is in France", "Paris"),
        ("Paris, France", "Paris"),
        ("Paris\nQuestion:", "Paris"),
        ("He was born there. So the answer is Paris, I think.", "Paris"),
        ("the answer is Ely. No, the answer is Girton", "Ely"),
        ("The answer is Ely", "The answer is Ely"),
        ("U.S.", "U"),
        ("", ""),
        (".x", ""),
    ],
)
def test_an_open_answer_is_cut_as_prag_cuts_it(text: str, cut: str) -> None:
    assert cut_answer(text) == cut


def test_a_prediction_is_a_label_or_the_text() -> None:
    assert prediction_of(CHOICE, "(b) it grows", cut=True) == "B"
    assert prediction_of(CHOICE, "who knows") == ""
    assert prediction_of(posed(("x",)), " Paris, France.\n") == "Paris, France."
    assert prediction_of(posed(("x",)), " Paris, France.\n", cut=True) == "Paris"
