"""One's own questions in regrad's JSON lines: their fields, kinds, choices and misspelt keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regrad.data.passages import Passage
from regrad.errors import EvaluationError
from regrad.lab.config import LabConfig
from regrad.lab.files import write_lab
from tests.tools.refusals import refused
from tests.unit.data.test_question_sets import TASK, lines, read, write


def test_ones_own_jsonl(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.jsonl",
        "\ufeff"
        + lines(
            {"question": "Who?", "answer": 7},
            {"id": "b", "question": "Is it?", "answers": ["Yes"], "kind": "yes-no", "passage_ids": ["p", "q"]},
            {"id": "c", "question": "Which?", "answer": "b", "choices": ["x", "y"], "group": "g"},
            {"id": "d", "question": "Which?", "answer": "x", "choices": ["x", "y"]},
            {"id": "e", "question": "Which?", "answer": 1, "choices": ["x", "y"]},
        ),
    )
    found = read(path, "jsonl")
    assert [q.answers for q in found] == [("7",), ("yes",), ("B",), ("A",), ("B",)]
    assert [q.kind for q in found] == ["open", "yes-no", "choice", "choice", "choice"]
    assert (found[1].passage_ids, found[1].choices, found[2].group) == (("p", "q"), ("yes", "no"), "g")


def test_the_labs_own_questions_and_tasks(tmp_path: Path) -> None:
    config = LabConfig(output=str(tmp_path), questions=7, task_records=3)
    write_lab(config)
    questions = read(tmp_path / "questions.jsonl", "jsonl")
    assert len(questions) == len({q.id for q in questions}) == 7
    assert all(len(q.passage_ids) == len(q.answers) == 1 for q in questions)
    asked = read(tmp_path / "tasks.jsonl", "tasks")
    records = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    assert [q.question for q in asked] == [q["question"] for record in records for q in record["questions"]]


def test_tasks_rest_on_their_passages(tmp_path: Path) -> None:
    first, second = read(write(tmp_path / "tasks.jsonl", lines(TASK)), "tasks")
    assert (first.id, first.passage_ids, second.passage_ids) == ("11-0/0", ("b",), ("a", "b"))
    assert first.passages == (Passage("b", "B", "y"),)


def test_a_kind_that_the_answers_do_not_allow(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", lines({"question": "x", "answer": "No"}, {"question": "y", "answer": "Rome"}))
    (found,) = read(path, "jsonl", kind="yes-no", limit=1)
    assert (found.kind, found.choices, found.answers) == ("yes-no", ("yes", "no"), ("no",))
    with refused(EvaluationError, "wrong_answer", found=["Rome"]):
        read(path, "jsonl", kind="yes-no")
    with refused(EvaluationError, "other_kind", found="open", wanted="choice"):
        read(path, "jsonl", kind="choice")


@pytest.mark.parametrize(
    ("key", "near"),
    [("choises", "choices"), ("choice", "choices"), ("Answers", "answers"), ("anwser", "answer"),
     ("passage", "passages"), ("passage-ids", "passage_ids"), ("ID", "id"), ("kinds", "kind"), ("grup", "group")],
)  # fmt: skip
def test_a_key_of_ones_own_file_that_is_nearly_a_known_one(tmp_path: Path, key: str, near: str) -> None:
    path = write(
        tmp_path / "own.jsonl", lines({"question": "x", "answer": "y"}, {"question": "z", "answer": "y", key: 1})
    )
    with refused(EvaluationError, "unknown_field", where=f"{path} line 2", field=key, near=near):
        read(path, "jsonl")


def test_other_keys_of_ones_own_file_are_passed_over(tmp_path: Path) -> None:
    extra = ("question_id", "source", "level", "type", "_id", "uid", "answerable", "answer_id", "comment", "x" * 99)
    path = write(tmp_path / "own.jsonl", lines({"question": "x", "answer": "y", **dict.fromkeys(extra, "?")}))
    assert [q.answers for q in read(path, "jsonl")] == [("y",)]


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (["x", "y"], 1, "B"),
        (["x", "y"], 0, "A"),
        (["x", "y"], "b", "B"),
        (["1", "2", "0"], 1, "A"),
        (["1", "2", "0"], "0", "C"),
        (["B", "A"], "A", "B"),
    ],
)
def test_a_number_is_a_place_from_0_unless_an_option_reads_so(
    tmp_path: Path, choices: list[str], answer: object, letter: str
) -> None:
    path = write(tmp_path / "own.jsonl", lines({"question": "x", "choices": choices, "answer": answer}))
    assert [q.answers for q in read(path, "jsonl")] == [(letter,)]


@pytest.mark.parametrize(
    ("answer", "choices", "word"),
    [
        (True, None, "yes"),
        (False, None, "no"),
        ([True], None, "yes"),
        ("True", None, "yes"),
        ("false", None, "no"),
        (True, ["true", "false"], "true"),
        ("false", ["True", "False"], "false"),
    ],
)
def test_true_and_false_answer_yes_or_no(tmp_path: Path, answer: object, choices: list[str] | None, word: str) -> None:
    record = {"question": "x", "kind": "yes-no", "answer": answer} | ({"choices": choices} if choices else {})
    assert [q.answers for q in read(write(tmp_path / "own.jsonl", lines(record)), "jsonl")] == [(word,)]


def test_true_is_no_answer_where_the_words_are_others(tmp_path: Path) -> None:
    record = {"question": "x", "kind": "yes-no", "answer": True, "choices": ["entailed", "not entailed"]}
    with refused(EvaluationError, "wrong_field", field="answer"):
        read(write(tmp_path / "own.jsonl", lines(record)), "jsonl")
