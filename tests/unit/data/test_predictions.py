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
from tests.tools.refusals import refused

QUESTIONS = [posed(("x",), id=name) for name in ("q1", "q2", "q3")]
MISMATCH = "ids_do_not_match"
TWICE = {"problems": {"more than once": ["q1"]}}
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
    problems = {
        "unusable": ["q2 (its prediction must be a string, found 7)", "5 (its id must be a string, found 5)"],
        "missing": ["q3"],
        "unknown": ["q9"],
        "more than once": ["q1"],
    }
    with refused(EvaluationError, MISMATCH, problems=problems):
        _read(tmp_path, _lines(entries))


@pytest.mark.parametrize(
    ("content", "code", "fields"),
    [
        ('{"q1": "x", "q2": "y", "q3": "z", "q1": "w"}', MISMATCH, TWICE),
        (
            '{"answer": {"q1": "x", "q1": "w", "q2": "y", "q3": "z"}}',
            MISMATCH,
            {"problems": {"more than once": ["q1"]}},
        ),
        ('{"q1": null, "q2": ["y"], "q3": {"text": "z"}}', MISMATCH, {}),
        ('{"q1": "x", "q2": "y", "q3": "\\ud800"}', MISMATCH, {}),
        ('{"id": "q1", "prediction": "x"}\n{"id": "q2"}\n', "no_prediction", {}),
        ('{"id": "q1", "prediction": "x"}\n{"id": "q2", "predic', "not_json", {}),
        ('{"id": "q1", "answer": "x"}\n{"id": "q2", "answer": "y"}\n', "not_json", {}),
        ("", "empty", {}),
        (" \n", "empty", {}),
        ('["x", "y", "z"]', "no_object", {"found": "list"}),
        ("q1\tx\n", "not_json", {}),
        ("[" * 200_000, "not_json", {}),
        (b'{"q1": "\xff"}', "not_utf8", {}),
        ("{}", MISMATCH, {"problems": {"missing": ["q1", "q2", "q3"]}}),
    ],
)
def test_a_wrong_file_is_a_clear_error(content: str | bytes, code: str, fields: dict[str, Any], tmp_path: Path) -> None:
    with refused(EvaluationError, code, **fields):
        _read(tmp_path, content)


def test_what_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = json.dumps({**RIGHT, "q1": "x" * 100_001})
    with refused(
        EvaluationError, MISMATCH, problems={"unusable": ["q1 (its prediction is longer than 100000 characters)"]}
    ):
        _read(tmp_path, long)
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    with refused(EvaluationError, "too_large"):
        _read(tmp_path, long)


def test_a_file_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.json").write_text(json.dumps(RIGHT))
    assert read_predictions("here.json", QUESTIONS) == RIGHT
    assert read_predictions(f"file://{tmp_path}/here.json", QUESTIONS) == RIGHT
    with refused(StorageError, "not_found"):
        read_predictions("nowhere.json", QUESTIONS)
    with refused(StorageError, "not_found", uri="/./nowhere.json"):
        read_predictions("/nowhere.json", QUESTIONS)
