"""Records that are wrong: each is refused with its place and its field, by every reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrad.data.question_sets import (
    READERS,
)
from regrad.errors import EvaluationError
from tests.tools.refusals import refused
from tests.unit.data.test_question_sets import CWQ, HOTPOT, HOUSING, MEDQA, MUSIQUE, TASK, YES_NO, lines, read, write


@pytest.mark.parametrize(
    ("format_", "record", "code", "field"),
    [
        ("hotpotqa", {**HOTPOT, "question": " "}, "wrong_field", "question"),
        ("hotpotqa", {**HOTPOT, "context": [["A"]]}, "wrong_field", "context"),
        (
            "hotpotqa",
            {k: v for k, v in HOTPOT.items() if k != "supporting_facts"},
            "missing_field",
            "supporting_facts",
        ),
        ("hotpotqa", {**HOTPOT, "answer": True}, "wrong_field", "answer"),
        ("complexwebquestions", {**CWQ, "answers": []}, "wrong_field", "answers"),
        ("complexwebquestions", {**CWQ, "answers": ["x"]}, "wrong_field", "answers[0]"),
        ("musique", {**MUSIQUE, "paragraphs": [{"idx": 0}]}, "missing_field", "paragraph_text"),
        ("medqa", {**MEDQA, "answer_idx": "E"}, "wrong_field", "answer_idx"),
        (
            "medqa",
            {**MEDQA, "options": {"A": "x", "C": "y"}},
            "wrong_field",
            "options",
        ),
        (
            "bioasq",
            {**YES_NO, "exact_answer": "perhaps"},
            "wrong_field",
            "exact_answer",
        ),
        ("housingqa", {**HOUSING, "answer": 3}, "wrong_field", "answer"),
        (
            "casehold",
            {"context": "x", "endings": ["a", "b"], "label": 2},
            "wrong_field",
            "label",
        ),
        (
            "data-aug",
            {"test_id": 1, "question": "a\x00b", "answer": "x"},
            "wrong_field",
            "question",
        ),
        ("jsonl", {"question": "a\ud800b", "answer": "x"}, "wrong_field", "question"),
        ("jsonl", {"question": "x", "answers": [{}]}, "wrong_field", "answers"),
        (
            "jsonl",
            {"question": "x", "answer": "z", "choices": ["a", "b"]},
            "wrong_field",
            "answer",
        ),
        (
            "jsonl",
            {"question": "x", "answer": "a", "kind": "chioce"},
            "wrong_field",
            "kind",
        ),
        ("jsonl", {"question": "x", "answer": "a", "passages": [{"id": "p"}]}, "bad_passage", "text"),
        ("tasks", {**TASK, "questions": [{"question": "x", "answer": "y", "context": [2]}]}, "bad_task", "context"),
    ],
)
def test_a_wrong_record_is_named_with_its_field(
    tmp_path: Path, format_: str, record: dict[str, Any], code: str, field: str
) -> None:
    path = write(tmp_path / "set.json", [record])
    with refused(EvaluationError, code, field=field) as error:
        read(path, format_)
    assert str(error.value).startswith(f"{path} record 1")


def test_an_augmentations_questions_come_with_their_passage(tmp_path: Path) -> None:
    pairs = [{"question": "A?", "answer": "1", "full_answer": "It is 1."}, {"question": "B?", "answer": 2}]
    own = {"id": "p", "title": "T", "text": "x", "rewrites": ["y"], "pairs": pairs}
    made = write(tmp_path / "augmented.jsonl", lines(own, {**own, "id": "bare", "pairs": []}))
    assert [(q.id, q.question, q.answers, q.passage_ids) for q in read(made, "augmented")] == [
        ("p/0", "A?", ("1",), ("p",)),
        ("p/1", "B?", ("2",), ("p",)),
    ]
    item = {"pid": 0, "passage": "x", "m_rewrite": "y", "m_qa": pairs}
    twice = write(tmp_path / "total.json", [{"augment": [item]}, {"augment": [item, {**item, "passage": "z"}]}])
    found = read(twice, "data-aug-pairs")
    assert [(q.question, q.passages[0].text) for q in found] == [("A?", "x"), ("B?", "x"), ("A?", "z"), ("B?", "z")]


@pytest.mark.parametrize(
    ("format_", "record", "code", "field"),
    [
        ("augmented", {"id": "p", "text": "x", "pairs": {}}, "wrong_field", "pairs"),
        (
            "augmented",
            {"id": "p", "text": "x", "pairs": [{"question": "A?"}]},
            "missing_field",
            "answer",
        ),
        ("augmented", {"id": "p", "pairs": []}, "bad_passage", "text"),
        ("data-aug-pairs", {"augment": [{"passage": "x"}]}, "missing_field", "<writer>_qa"),
        ("data-aug-pairs", {"question": "A?"}, "missing_field", "augment"),
    ],
)
def test_a_wrong_augmentation_is_named(
    tmp_path: Path, format_: str, record: dict[str, Any], code: str, field: str
) -> None:
    with refused(EvaluationError, code, field=field):
        read(write(tmp_path / "set.json", [record]), format_)


@pytest.mark.parametrize("format_", sorted(READERS))
@pytest.mark.parametrize(
    "content", ["[{}]", '{"questions": [{}], "Data": [{}]}', "[1]", "3", "{", '"x"', '[{"a": [', "a,b\n"]
)
def test_no_reader_fails_in_another_way_than_with_its_own_error(tmp_path: Path, format_: str, content: str) -> None:
    for name in ("set.json", "set.jsonl", "set.csv", "set.tsv"):
        with pytest.raises(EvaluationError) as error:
            read(write(tmp_path / name, content), format_)
        assert any(str(tmp_path / name) in str(value) for value in error.value.fields.values())


@pytest.mark.parametrize(
    ("format_", "near"),
    [("hotpot", "hotpotqa"), ("2wiki", "2wikimultihopqa"), ("PubMedQA", "pubmedqa"), ("trivia-qa", "triviaqa")],
)
def test_an_unknown_format_names_the_nearest(tmp_path: Path, format_: str, near: str) -> None:
    with refused(EvaluationError, "unknown_name", name=format_, near=near):
        read(tmp_path / "none", format_)
