"""Test questions among the training questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from regrad.cli.score import leaks
from regrad.data.questions import Question
from regrad.errors import EvaluationError
from regrad.evaluation.leaks import Leak, NearTexts, find_leaks, similarity
from tests.tools.refusals import refused


def asked(name: str, text: str, choices: tuple[str, ...] = ()) -> Question:
    return Question(name, text, ("A",), "choice" if choices else "open", choices)


TRAIN = [
    asked("t1", "In which city was the film director Ada Lovelace born?"),
    asked("t2", "Who is the mother of the director of the film Blind Shaft?"),
    asked("t3", "Which of these drugs?", ("aspirin", "ibuprofen")),
]


def test_the_same_question_in_other_dress_is_exact() -> None:
    test = [
        asked("x", "in which city was a film director  ADA Lovelace born ??"),
        asked("y", "Something else entirely?"),
    ]
    assert find_leaks(TRAIN, test) == [Leak(test[0], TRAIN[0], "exact", 1.0)]


def test_a_reworded_question_is_near_and_names_the_nearest() -> None:
    test = asked("x", "In which city was the famous film director Ada Lovelace born?")
    (leak,) = find_leaks(
        [*TRAIN, asked("t4", "In which city was that film director Ada Lovelace buried?")], [test], 0.6
    )
    assert (leak.train, leak.how) == (TRAIN[0], "near")
    assert 0.6 <= leak.similarity < 1
    assert find_leaks(TRAIN, [test], 0.95) == []


def test_the_same_pattern_about_another_film_is_no_leak() -> None:
    assert find_leaks(TRAIN, [asked("x", "Who is the mother of the director of the film Casablanca?")]) == []


def test_options_are_part_of_a_question() -> None:
    other = asked("x", "Which of these drugs?", ("penicillin", "tetracycline"))
    assert find_leaks(TRAIN, [other]) == []
    assert [leak.how for leak in find_leaks(TRAIN, [TRAIN[2]])] == ["exact"]


def test_very_short_and_empty_texts() -> None:
    assert [leak.how for leak in find_leaks([asked("a", "Who?"), asked("b", "???")], [asked("c", "who")])] == ["exact"]
    assert find_leaks([], TRAIN) == []


WORDS = st.lists(st.sampled_from(["who", "was", "born", "where", "city", "x"]), min_size=1, max_size=9).map(" ".join)


@given(
    texts=st.lists(WORDS, max_size=25, unique=True), text=WORDS, threshold=st.sampled_from([0.3, 0.5, 0.8, 0.9, 1.0])
)
def test_every_near_text_is_found_and_no_other(texts: list[str], text: str, threshold: float) -> None:
    found = NearTexts(texts, threshold).to(text)
    assert sorted(found) == sorted((s, other) for other in texts if (s := similarity(text, other)) >= threshold)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1])
def test_a_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        find_leaks(TRAIN, TRAIN, threshold)


def test_the_command_line_counts_shows_and_tells_by_its_status(tmp_path: Path) -> None:
    task = {
        "passages": [{"id": "p", "title": "", "text": "x"}],
        "questions": [{"question": "Who was it?", "answer": "A"}],
    }
    tasks, test = tmp_path / "tasks.jsonl", tmp_path / "questions.jsonl"
    tasks.write_text(json.dumps(task) + "\n")
    test.write_text('{"id": "q1", "question": "Who was \\u001b[31m it", "answer": "A"}\n')
    clean = CliRunner().invoke(leaks, [str(tasks), str(test), "--threshold", "1"])
    assert (clean.exit_code, clean.output) == (0, f"1 questions: 0 are in {tasks}, 0 nearly so\n")
    test.write_text('{"id": "q1", "question": "who was it", "answer": "A"}\n')
    found = CliRunner().invoke(leaks, [str(tasks), str(test)])
    assert found.exit_code == 1
    assert found.output.splitlines()[1:] == ["exact 1.00  q1: who was it", "            1/0: Who was it?"]


def test_a_file_of_questions_that_is_read_as_tasks_names_the_option(tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    for path in (train, test):
        path.write_text('{"question": "Who was it?", "answer": "A"}\n')
    with refused(EvaluationError, "not_tasks", path=str(train)):
        CliRunner().invoke(leaks, [str(train), str(test)], catch_exceptions=False)
    assert CliRunner().invoke(leaks, [str(train), str(test), "--train-format", "jsonl"]).exit_code == 1
    arguments = [str(train), str(test), "--train-format", "jsonl", "--test-format", "tasks"]
    with refused(EvaluationError, "bad_task", where=f"{test} line 1") as other:
        CliRunner().invoke(leaks, arguments, catch_exceptions=False)
    assert "--train-format" not in str(other.value)


PASSAGE = {"id": "les", "title": "Les Dripen", "text": "Les Dripen was raised in the city of Thomville."}
PAIRS = [
    {"question": "In which city was Les Dripen raised?", "answer": "Thomville", "full_answer": "In Thomville."},
    {"question": "Who was raised in the city of Thomville, so the passage?", "answer": "Les Dripen"},
]
AUGMENTED = {**PASSAGE, "rewrites": ["Thomville is where Les Dripen was raised."], "pairs": PAIRS}
DATA_AUG = {
    **{"test_id": 0, "question": "Not of the augmentation?", "answer": "x", "passages": [PASSAGE["text"]]},
    "augment": [{"pid": 0, "passage": PASSAGE["text"], "m_rewrite": "Thomville is.", "m_qa": PAIRS}],
}


@pytest.mark.parametrize(
    ("format_", "name", "content"),
    [
        ("augmented", "augmented.jsonl", json.dumps(AUGMENTED) + "\n"),
        ("data-aug-pairs", "total.json", json.dumps([DATA_AUG, {**DATA_AUG, "test_id": 1}])),
    ],
)
def test_test_questions_in_an_augmentation_are_found_exact_and_near(
    tmp_path: Path, format_: str, name: str, content: str
) -> None:
    train, test = tmp_path / name, tmp_path / "questions.jsonl"
    train.write_text(content)
    asked = [
        "in which city was Les Dripen raised",
        "Who was raised in the city of Thomville, says the passage?",
        "Not of the augmentation?",
    ]
    rows = [{"id": f"q{i}", "question": text, "answer": "x"} for i, text in enumerate(asked)]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [str(train), str(test), "--train-format", format_, "--threshold", "0.7"]
    found = CliRunner().invoke(leaks, arguments)
    assert found.exit_code == 1
    count, *lines = found.output.splitlines()
    assert count == f"3 questions: 1 are in {train}, 1 nearly so"
    assert [line.split()[0] for line in lines[::2]] == ["exact", "near"]
    assert "Who was raised in the city of Thomville, so the passage?" in lines[3]
