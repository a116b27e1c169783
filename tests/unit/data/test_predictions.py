"""A user's prediction file against its questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regrad.data import predictions as module
from regrad.data.predictions import read_predictions
from regrad.errors import EvaluationError, StorageError
from tests.tools.questions import posed

QUESTIONS = [posed(("x",), id=name) for name in ("q1", "q2", "q3")]
RIGHT = {"q1": "Girton", "q2": "", "q3": "Ærø, 東京\n"}


def _read(tmp_path: Path, content: str | bytes) -> dict[str, str]:
    path = tmp_path / "predictions"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_predictions(str(path), QUESTIONS)


def _lines(entries: list[tuple[Any, Any]]) -> str:
    return "".join(json.dumps({"id": name, "prediction": text}) + "\n" for name, text in entries)


@pytest.mark.parametrize(
    "content",
    [
        _lines(list(RIGHT.items())[::-1]),
        "\ufeff\n" + _lines(list(RIGHT.items())).replace("\n", "\r\n\r\n"),
        json.dumps(RIGHT),
        json.dumps(RIGHT, indent=1, ensure_ascii=False),
        json.dumps({"answer": RIGHT, "sp": {"q1": [["Ada", 0]]}}),
    ],
)
def test_every_layout_is_read_in_the_questions_order(content: str, tmp_path: Path) -> None:
    assert list(_read(tmp_path, content).items()) == list(RIGHT.items())


def test_one_prediction_is_a_mapping_or_a_line(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    for content in ('{"q1": "x"}', '{"id": "q1", "prediction": "x"}', '{\n"id": "q1",\n"prediction": "x"}'):
        path.write_text(content)
        assert read_predictions(str(path), QUESTIONS[:1]) == {"q1": "x"}
    path.write_text('{"answer": "x"}')
    assert read_predictions(str(path), [posed(("x",), id="answer")]) == {"answer": "x"}


def test_all_that_does_not_match_is_listed(tmp_path: Path) -> None:
    entries = [("q1", "x"), ("q1", "y"), ("q9", "z"), ("q2", 7), (5, "x")]
    with pytest.raises(EvaluationError) as caught:
        _read(tmp_path, _lines(entries))
    message = str(caught.value)
    assert "predictions does not match the 3 questions: 2 unusable: " in message
    assert "q2 (its prediction must be a string, found 7)" in message
    assert "5 (its id must be a string, found 5)" in message
    assert "1 missing: 'q3'; 1 unknown: 'q9'; 1 more than once: 'q1'" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"q1": "x", "q2": "y", "q3": "z", "q1": "w"}', "1 more than once: 'q1'"),
        ('{"answer": {"q1": "x", "q1": "w", "q2": "y", "q3": "z"}}', "1 more than once: 'q1'"),
        ('{"q1": null, "q2": ["y"], "q3": {"text": "z"}}', '3 unusable: .*found null.*found \\["y"\\]'),
        ('{"q1": "x", "q2": "y", "q3": "\\ud800"}', "its prediction is not valid Unicode"),
        ('{"id": "q1", "prediction": "x"}\n{"id": "q2"}\n', r"predictions line 2: expected an object with id and pred"),
        ('{"id": "q1", "prediction": "x"}\n{"id": "q2", "predic', "predictions line 2 is not JSON"),
        ('{"id": "q1", "answer": "x"}\n{"id": "q2", "answer": "y"}\n', 'is not JSON: Extra data.*lines of {"id"'),
        ("", "is empty; expected lines of"),
        (" \n", "is empty"),
        ('["x", "y", "z"]', "holds list where an object was expected"),
        ("q1\tx\n", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        (b'{"q1": "\xff"}', "is not UTF-8"),
        ("{}", "3 missing: 'q1', 'q2', 'q3'"),
    ],
)
def test_a_wrong_file_is_a_clear_error(content: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=words):
        _read(tmp_path, content)


def test_what_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = json.dumps({**RIGHT, "q1": "x" * 100_001})
    with pytest.raises(EvaluationError, match="its prediction is longer than 100000 characters"):
        _read(tmp_path, long)
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    with pytest.raises(EvaluationError, match="larger than 1000 bytes"):
        _read(tmp_path, long)


def test_a_file_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.json").write_text(json.dumps(RIGHT))
    assert read_predictions("here.json", QUESTIONS) == RIGHT
    assert read_predictions(f"file://{tmp_path}/here.json", QUESTIONS) == RIGHT
    with pytest.raises(StorageError, match="does not exist"):
        read_predictions("nowhere.json", QUESTIONS)
    with pytest.raises(StorageError, match="/nowhere.json"):
        read_predictions("/nowhere.json", QUESTIONS)
