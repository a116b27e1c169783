"""`regrad score`: predictions in a file against a question set, and against other predictions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from regrad.cli import score as score_cli
from regrad.errors import EvaluationError, StorageError
from regrad.evaluation.metrics import RULES
from regrad.evaluation.records import write_records
from regrad.evaluation.scoring import compare_records, parts, read_scored
from regrad.evaluation.statistics import compare, holm, wilson_interval
from regrad.storage import Storage
from tests.tools.records import record
from tests.tools.refusals import refused

OPEN = [
    {"id": f"q{n}", "question": f"Where was number {n} born?", "answer": f"Town {n}", "group": "ab"[n % 2]}
    for n in range(8)
]
CLOSED = [
    {"id": "c1", "question": "Is it?", "answer": "yes", "kind": "yes-no"},
    {"id": "c2", "question": "Which?", "answer": "B", "choices": ["aspirin", "ibuprofen"]},
    {"id": "c3", "question": "Was it?", "answer": "no", "kind": "yes-no"},
]
RIGHT = {f"q{n}": f"the Town {n}" for n in range(8)}


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def score(*arguments: str) -> str:
    result = CliRunner().invoke(score_cli.score, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in OPEN))
    return str(path)


def test_every_number_is_that_of_the_questions(tmp_path: Path, questions: str) -> None:
    said = RIGHT | {"q1": "Town", "q3": "elsewhere", "q5": ""}
    target = tmp_path / "numbers.json"
    shown = score(questions, write(tmp_path / "mine.json", said), "--json", str(target))
    whole, a, b = (part["scores"] for part in json.loads(target.read_text())["scores"])
    assert (whole["em"]["mean"], a["em"]["mean"], b["em"]["mean"]) == (5 / 8, 1.0, 1 / 4)
    assert tuple(whole["em"]["interval"]) == wilson_interval(5, 8)
    assert whole["f1"]["mean"] == pytest.approx((5 + 2 / 3) / 8)
    assert (whole["precision"]["mean"], whole["recall"]["mean"]) == (6 / 8, 5.5 / 8)
    assert [one["f1"]["questions"] for one in (whole, a, b)] == [8, 4, 4]
    assert whole["f1"]["unparsable"] == 1
    rows = [line.split() for line in shown.splitlines()]
    assert rows[1][:2] + rows[1][2:] == ["open", "questions", "EM", "F1", "precision", "recall", "empty"]
    assert rows[2][:3] == ["all", "8", "62.5"] and rows[3][:3] == ["a", "4", "100.0"] and rows[4][:2] == ["b", "4"]


def test_closed_questions_have_accuracy_and_what_could_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "closed.json", CLOSED)
    said = {"c1": "Yes, it is.", "c2": "I cannot say", "c3": "yes"}
    shown = score(path, write(tmp_path / "mine.json", said))
    assert "EM" not in shown
    head, row = shown.splitlines()[1:]
    assert head.split() == ["closed", "questions", "accuracy", "unparsable"]
    assert row.split() == ["all", "3", "33.3", "[6.1,", "79.2]", "1"]


def test_closed_answers_are_scored_by_either_reader(tmp_path: Path) -> None:
    path = write(tmp_path / "closed.json", CLOSED)
    said = write(tmp_path / "mine.json", {"c1": "no evidence", "c2": "B.", "c3": "There is no evidence"})
    found = {}
    for reader in ("strict", "release"):
        target = tmp_path / f"{reader}.json"
        score(path, said, "--reader", reader, "--json", str(target))
        numbers = json.loads(target.read_text())
        assert numbers["reader"] == reader
        (part,) = numbers["scores"]
        found[reader] = (part["scores"]["correct"]["mean"], part["scores"]["correct"]["unparsable"])
    assert found == {"strict": (1 / 3, 2), "release": (2 / 3, 0)}


def test_open_and_closed_questions_are_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "both.json", [*OPEN, *CLOSED])
    said = RIGHT | {"c1": "yes", "c2": "B", "c3": "no"}
    mine = write(tmp_path / "mine.json", said)
    shown = score(path, mine, "--against", mine)
    assert [line.split()[0] for line in shown.splitlines()[1:] if " all " in f" {line}"] == ["all", "all"]
    compared = shown.partition("against")[2]
    assert [line.split()[:3] for line in compared.splitlines()[2:-1]] == [
        *([name, "8", "+0.0"] for name in ("EM", "F1", "precision", "recall")),
        ["accuracy", "3", "+0.0"],
    ]
    assert "Holm's correction over 5 metrics" in compared


def test_against_others_it_is_the_paired_tests_corrected_over_the_metrics(tmp_path: Path, questions: str) -> None:
    from regrad.data.question_sets import QuestionSetConfig, read_questions

    asked = read_questions(QuestionSetConfig(name="x", path=questions))
    other = {name: text if name in ("q0", "q1") else "Town" for name, text in RIGHT.items()}
    ours = read_scored(write(tmp_path / "mine.json", RIGHT), asked)
    theirs = read_scored(write(tmp_path / "other.json", other), asked)
    found = compare_records(ours, theirs)
    alone = {
        column: compare([getattr(row, column) for row in ours], [getattr(row, column) for row in theirs])
        for column in ("em", "f1", "precision", "recall")
    }
    assert {column: (one.difference, one.p_t) for column, one in found.items()} == {
        column: (one.difference, one.p_t) for column, one in alone.items()
    }
    assert [one.holm_t for one in found.values()] == holm([one.p_t for one in alone.values()])
    assert [one.holm_bootstrap for one in found.values()] == holm([one.p_bootstrap for one in alone.values()])
    assert found["em"].difference == 0.75 and found["em"].holm_t > found["em"].p_t


def test_a_directory_that_is_not_there_is_not_made(
    tmp_path: Path, questions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write(tmp_path / "mine.json", RIGHT)
    with refused(StorageError, "no_directory", uri=str(tmp_path / "nowhere" / "x.json")):
        score(questions, mine, "--json", str(tmp_path / "nowhere" / "x.json"))
    assert not (tmp_path / "nowhere").exists()
    monkeypatch.chdir(tmp_path)
    score(questions, mine, "--json", "x.json")
    assert (tmp_path / "x.json").exists()


@pytest.mark.parametrize(("ours", "theirs", "sign"), [("right", "wrong", "+"), ("wrong", "right", "-")])
def test_the_columns_of_the_widest_numbers_do_not_touch(
    tmp_path: Path, questions: str, ours: str, theirs: str, sign: str
) -> None:
    said = {"right": RIGHT, "wrong": dict.fromkeys(RIGHT, "x")}
    files = {name: write(tmp_path / f"{name}.json", answers) for name, answers in said.items()}
    _, _, compared = score(questions, files[ours], "--against", files[theirs]).partition("against")
    all_right = score(questions, files["right"]).splitlines()[2]
    assert all_right.count("]  ") == 4, all_right
    (row,) = [line for line in compared.splitlines() if line.startswith("EM ")]
    assert re.search(rf"\{sign}100\.0 \[{sign.strip('+')}100\.0, {sign.strip('+')}100\.0\]  +\S+  +\S+$", row), row


@pytest.mark.parametrize(
    ("said", "label", "ids"),
    [
        (dict.fromkeys(list(RIGHT)[2:], "x"), "missing", ["q0", "q1"]),
        (RIGHT | {"q8": "x"}, "unknown", ["q8"]),
        (RIGHT | {"q2": 3}, "unusable", ["q2"]),
    ],
)
@pytest.mark.parametrize("place", ["predictions", "against"])
def test_what_does_not_match_its_questions_is_refused(
    tmp_path: Path, questions: str, said: dict[str, Any], label: str, ids: list[str], place: str
) -> None:
    good, bad = write(tmp_path / "good.json", RIGHT), write(tmp_path / "bad.json", said)
    files = [bad] if place == "predictions" else [good, "--against", bad]
    with refused(EvaluationError, "ids_do_not_match") as caught:
        score(questions, *files)
    problems: Any = caught.value.fields["problems"]
    assert [item.split(" (")[0] for item in problems[label]] == ids


def test_the_questions_are_read_as_the_format_and_the_options_say(tmp_path: Path) -> None:
    entries = [
        {"_id": f"h{n}", "question": f"Which {n}?", "answer": "yes", "context": [], "supporting_facts": []}
        for n in range(3)
    ]
    path = write(tmp_path / "hotpot.json", entries)
    mine = write(tmp_path / "mine.json", {"answer": {"h0": "yes it is", "h1": "yes"}, "sp": {}})
    options = ("--format", "hotpotqa", "--limit", "2")
    assert score(path, mine, *options, "--rules", RULES[0]).splitlines()[2].split()[5] == "75.0"
    assert score(path, mine, *options).splitlines()[2].split()[5] == "50.0"
    assert score(path, mine, *options, "--prag-style-cut", "--rules", RULES[0]).splitlines()[2].split()[5] == "75.0"
    with refused(EvaluationError, "ids_do_not_match", problems={"missing": ["h2"]}):
        score(path, mine, "--format", "hotpotqa")


def test_records_of_a_run_are_predictions_too_and_must_be_of_these_questions(tmp_path: Path, questions: str) -> None:
    def save(name: str, answer: str) -> str:
        rows = [
            record(
                question_id=str(row["id"]),
                question=str(row["question"]),
                answers=(answer + str(row["id"])[1:],),
                raw=RIGHT[str(row["id"])],
                em=0.0,
            )
            for row in OPEN
        ]
        write_records(Storage(tmp_path), name, rows)
        return str(tmp_path / name)

    shown = score(questions, save("cell.parquet", "Town "), "--against", write(tmp_path / "mine.json", RIGHT))
    assert shown.splitlines()[2].split()[2] == "100.0"
    changed = {"with other words, answers or kind than in the question set": sorted(RIGHT)}
    with refused(EvaluationError, "ids_do_not_match", problems=changed):
        score(questions, save("other.parquet", "Village "))


def test_open_predictions_can_be_cut(tmp_path: Path, questions: str) -> None:
    mine = write(tmp_path / "mine.json", {name: f"So the answer is {text}, I think." for name, text in RIGHT.items()})
    assert score(questions, mine).splitlines()[2].split()[2] == "0.0"
    assert score(questions, mine, "--prag-style-cut").splitlines()[2].split()[2] == "100.0"


def test_a_set_without_groups_has_one_line(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "group"} for row in OPEN]
    shown = score(write(tmp_path / "q.json", rows), write(tmp_path / "mine.json", RIGHT))
    assert len(shown.splitlines()) == 3


def test_parts_of_nothing_are_none() -> None:
    assert parts([]) == []
