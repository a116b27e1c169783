"""`regrad try --questions`: who was right, by replies that a stand-in for the server gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from regrad.cli.main import regrad
from regrad.cli.trial.asking import ANSWERS, WAYS, WayReply, ask_all, read_asked
from regrad.data.questions import Question
from regrad.errors import ConfigError, EvaluationError, ServeError
from serve_app.config import LimitsConfig
from tests.tools.refusals import refused


@pytest.mark.parametrize(
    ("said", "held"),
    [
        ("Ottilie Brandt", True),
        ("It was built by the engineer Ottilie  Brandt.", True),
        ("ottilie brandt!", True),
        ("Brandt", False),
        ("Ottilie Brandtsen", False),
        ("Brandt, Ottilie", False),
        ("", False),
    ],
)
def test_a_reply_holds_an_answer_whose_words_stand_in_it_together(said: str, held: bool) -> None:
    question = Question("q", "Who built it?", ("The Ottilie Brandt", "the"))
    assert WayReply("rag", said, (), 3, 1.0).holds(question) is held


def test_every_question_is_asked_in_every_way_and_what_each_gets_right_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"direct": "[red] No one", "rag": "It was Ann Li, I think", "regrad": "Ann Li", "regrad+icl": "Ann Li"}
    requests: list[tuple[str, str, int]] = []

    class Client:
        def __init__(self, url: str) -> None:
            assert url == "http://server"

        def answer(self, question: str, method: str, k: int, max_new_tokens: int) -> dict[str, Any]:
            assert max_new_tokens >= 48, "an answer at the end of a sentence is not cut off"
            requests.append((question, method, k))
            text = said[method] if question != "And who else?" else "Bo"
            usage, took = {"prompt_tokens": 7}, {"total": 21.4}
            return {"answer": text, "passages": [{"id": "note.txt:1"}], "usage": usage, "milliseconds": took}

    monkeypatch.setattr("regrad.cli.trial.asking.AnswerClient", Client)
    monkeypatch.setenv("COLUMNS", "200")
    lines = [{"question": "Who built it?", "answers": ["Ann Li"]}, {"question": "And who else?", "answers": ["Bo Ek"]}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ask_all("http://server", read_asked(f"{tmp_path}/asked.jsonl", LimitsConfig()), 3, str(tmp_path / "out"))
    assert requests == [(line["question"], way, 3) for line in lines for way in WAYS]

    shown = capsys.readouterr().out
    assert "✗ [red] No one" in shown and "✓ It was Ann Li, I think" in shown and "2 questions, k=3" in shown
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if " of 2 " in line]
    assert rows == [  # F1 of the second question: "Bo" of "Bo Ek" is 2/3
        ["direct", "0 of 2", "0.0", "33.3", "7", "21"],
        ["rag", "1 of 2", "0.0", f"{100 * (4 / 8 + 2 / 3) / 2:.1f}", "7", "21"],
        ["regrad", "1 of 2", "50.0", "83.3", "7", "21"],
        ["regrad+icl", "1 of 2", "50.0", "83.3", "7", "21"],
    ]
    kept = [json.loads(line) for line in (tmp_path / "out" / ANSWERS).read_text().splitlines()]
    assert [one["question"] for one in kept] == ["Who built it?", "And who else?"]
    expected = {"answer": "It was Ann Li, I think", "holds_answer": True, "passages": ["note.txt:1"]}
    assert kept[0]["replies"]["rag"] == expected


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ({"question": "Who?"}, "missing_field"),
        ({"question": "Is it?", "answers": ["no"], "kind": "yes-no"}, "not_open"),
        ({"question": "Which?", "answers": ["A"], "kind": "choice", "choices": ["x", "y"]}, "not_open"),
        ({"question": "Who?", "answers": ["Ann"], "turns": [{"role": "user", "content": "Hm"}]}, "not_open"),
        ({"question": "Who? " * 1000, "answers": ["Ann"]}, "question_too_long"),
    ],
)
def test_a_file_with_what_is_not_asked_here_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: Any, code: str
) -> None:
    (tmp_path / "asked.jsonl").write_text(json.dumps(line) + "\n")
    with refused(EvaluationError, code):
        started(tmp_path, monkeypatch, "--questions", f"{tmp_path}/asked.jsonl")


@pytest.mark.parametrize(
    ("options", "key"),
    [(["-k", "11"], "serve.limits.max_k"), (["--set", "serve.limits.max_new_tokens=8"], "serve.limits.max_new_tokens")],
)
def test_what_the_server_would_refuse_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], key: str
) -> None:
    with refused(ConfigError, "above_the_servers_limit", key=key):
        started(tmp_path, monkeypatch, "--ask", "Who?", *options)


def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """The command, which must not come to its work."""
    monkeypatch.setattr("regrad.cli.trial.run.prepare", lambda *_: pytest.fail("prepared"))
    (tmp_path / "note.txt").write_text("A note.")
    CliRunner().invoke(regrad, ["try", str(tmp_path), *options], catch_exceptions=False)


def test_what_was_answered_before_the_server_failed_is_kept_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        def __init__(self, url: str) -> None:
            pass

        def answer(self, question: str, method: str, **options: int) -> dict[str, Any]:
            if question == "3" and method == "rag":
                raise ServeError("gone", code="request_failed")
            return {"answer": "Bo", "passages": [], "usage": {"prompt_tokens": 7}, "milliseconds": {"total": 1.0}}

    monkeypatch.setattr("regrad.cli.trial.asking.AnswerClient", Failing)
    questions = [Question(str(number), str(number), ("Bo",)) for number in range(1, 5)]
    with refused(ServeError, "request_failed"):
        ask_all("http://server", questions, 1, str(tmp_path))
    assert len((tmp_path / ANSWERS).read_text().splitlines()) == 2
    shown = capsys.readouterr().out
    assert "2 questions, k=1" in shown and "2 of 2" in shown and ANSWERS in shown


def test_the_questions_of_the_example_stand_in_its_notes() -> None:
    examples = Path(__file__).parents[3] / "examples"
    notes = " ".join((examples / "notes" / path.name).read_text() for path in (examples / "notes").iterdir())
    words = " ".join(notes.split())
    for question in read_asked(f"{examples}/questions.jsonl", LimitsConfig()):
        assert question.answers[0] in words, question
