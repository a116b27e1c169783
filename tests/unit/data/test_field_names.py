"""Fields under the names that other tools give them, the same in every format, and values that tables write."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrad.data.corpora import read_passages
from regrad.data.field_names import split_contents
from regrad.data.files import corpus_files
from regrad.data.passages import Passage
from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.questions import Question
from regrad.data.tasks import read_tasks
from regrad.errors import CorpusError, EvaluationError
from tests.tools.refusals import refused

FORMATS = ("c.jsonl", "c.ndjson", "C.JSONL", "c.jsonl.gz", "c.parquet", "c.tsv")
ADA = {"id": "a", "title": "Ada", "text": "x"}


def write(path: Path, records: Sequence[dict[str, Any]]) -> str:
    """The records in the format that the name says."""
    name = path.name.lower()
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    elif name.endswith("tsv"):
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, records[0].keys(), delimiter="\t")
            table.writeheader()
            table.writerows(records)
    else:
        lines = "".join(json.dumps(record) + "\n" for record in records).encode()
        path.write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    return str(path)


def read(path: str, format_: str = "jsonl", **settings: Any) -> list[Question]:
    return read_questions(QuestionSetConfig(name="set", path=path, format=format_, **settings))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("id_name", ["id", "_id", "docid"])
@pytest.mark.parametrize("text_name", ["text", "contents"])
def test_passages_by_any_name_in_any_format(tmp_path: Path, name: str, id_name: str, text_name: str) -> None:
    path = write(
        tmp_path / name, [{id_name: 7, "title": "Ada", text_name: "x"}, {id_name: 8, "title": "", text_name: "y"}]
    )
    assert list(read_passages(path)) == [Passage("7", "Ada", "x"), Passage("8", "", "y")]


@pytest.mark.parametrize("name", FORMATS)
def test_a_first_line_of_contents_in_quotes_is_the_title(tmp_path: Path, name: str) -> None:
    contents = ['"Evan Morris"\nEvan Morris was.\nHe is.', "No title.\nHere.", '"All of it in quotes"']
    path = write(tmp_path / name, [{"id": str(i), "contents": text} for i, text in enumerate(contents)])
    assert [(passage.title, passage.text) for passage in read_passages(path)] == [
        ("Evan Morris", "Evan Morris was.\nHe is."),
        ("", contents[1]),
        ("", contents[2]),
    ]


def test_only_the_outer_quotes_of_a_title_are_taken_away_and_a_title_of_its_own_wins() -> None:
    assert split_contents('""Weird Al" Yankovic"\nHe sings.') == ('"Weird Al" Yankovic', "He sings.")
    record = {"id": "a", "title": "Own", "contents": '"Other"\nx'}
    assert Passage.from_record(record) == Passage("a", "Own", "x")
    assert Passage.from_record({**record, "text": "y"}) == Passage("a", "Own", "y")


def test_a_title_that_a_table_left_empty_is_none_in_every_format(tmp_path: Path) -> None:
    for title in ([None, "T"], [float("nan"), "T"], [float("nan"), float("nan")]):
        frame = pd.DataFrame({"id": [1, 2], "title": title, "text": ["x", "y"]})
        frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
        frame.to_parquet(tmp_path / "b.parquet")
        frame.to_csv(tmp_path / "c.tsv", sep="\t", index=False)
        write(tmp_path / "d.jsonl", frame.to_dict("records"))
        expected = [Passage("1", "", "x"), Passage("2", "T" if title[1] == "T" else "", "y")]
        for name in ("a.jsonl", "b.parquet", "c.tsv", "d.jsonl"):
            assert list(read_passages(str(tmp_path / name))) == expected, (name, title)


def test_a_field_that_is_missing_is_told_with_those_that_are_there() -> None:
    with refused(CorpusError, "missing_field", field="text") as error:
        Passage.from_record({"id": "a", "body": "x", "url": "u"}, "c.jsonl line 3")
    assert str(error.value).startswith("c.jsonl line 3: ") and "it has id, body, url" in str(error.value)
    with refused(CorpusError, "missing_field", field="id"):
        Passage.from_record({"text": "x"})
    for wrong in ({"id": 1.5}, {"id": True}, {"title": 1984}, {"text": float("nan")}):
        with refused(CorpusError, "wrong_field", field=next(iter(wrong))):
            Passage.from_record({**ADA, **wrong})


@pytest.mark.parametrize("name", ["q.jsonl", "q.NDJSON", "q.json", "q.parquet", "q.jsonl.gz"])
@pytest.mark.parametrize("answers", ["answer", "answers", "golden_answers"])
def test_questions_by_any_name_in_any_format(tmp_path: Path, name: str, answers: str) -> None:
    records = [{"_id": i, "question": f"Q{i}?", answers: ["x", "y"]} for i in (1, 2)]
    path = write(tmp_path / name, records) if name != "q.json" else str(tmp_path / name)
    if name == "q.json":
        Path(path).write_text(json.dumps(records))
    assert [(q.id, q.answers) for q in read(path)] == [("1", ("x", "y")), ("2", ("x", "y"))]


def test_a_list_of_answers_goes_before_one_and_an_empty_one_does_not_count(tmp_path: Path) -> None:
    records = [{"question": "a", "answer": "x", "answers": ["x", "y"]}, {"question": "b", "answer": "x", "answers": []}]
    assert [q.answers for q in read(write(tmp_path / "q.jsonl", records))] == [("x", "y"), ("x",)]


def test_gold_is_a_list_of_passage_ids_or_something_else(tmp_path: Path) -> None:
    records = [{"question": "a", "answer": "x", "gold": ["p", 7]}, {"question": "b", "answer": "x", "gold": "x"}]
    assert [q.passage_ids for q in read(write(tmp_path / "q.jsonl", records))] == [("p", "7"), ()]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")], ["x", float("nan")]])
def test_a_number_that_is_none_is_no_answer(tmp_path: Path, value: Any) -> None:
    record = {"question": "Q?", "answer": value}
    with refused(EvaluationError, "wrong_field", field="answer") as error:
        read(write(tmp_path / "q.jsonl", [{"question": "P?", "answer": 1}, record]))
    assert f"{tmp_path}/q.jsonl line 2: field 'answer'" in str(error.value)
    task = {"passages": [ADA], "questions": [record]}
    with refused(CorpusError, "wrong_field", where=f"{tmp_path}/t.jsonl line 1 question 0", field="answer"):
        read_tasks(write(tmp_path / "t.jsonl", [task]))


def test_a_whole_float_is_written_as_the_integer(tmp_path: Path) -> None:
    frame = pd.DataFrame({"question": ["How many?", "Year?", "How much?"], "answer": [2.0, 1990, 2.5]})
    frame.to_parquet(tmp_path / "q.parquet")
    frame.to_json(tmp_path / "q.jsonl", orient="records", lines=True)
    for name in ("q.parquet", "q.jsonl"):
        assert [q.answers for q in read(str(tmp_path / name))] == [("2",), ("1990",), ("2.5",)]
    (task,) = read_tasks(write(tmp_path / "t.jsonl", [{"passages": [ADA], "questions": frame.to_dict("records")}]))
    assert [question.answer for question in task.questions] == ["2", "1990", "2.5"]


def test_a_kind_of_another_meaning_is_passed_over_where_the_settings_say_the_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [{"question": "Q?", "answer": "x", "kind": "2hop"}])
    with refused(EvaluationError, "wrong_field", field="kind"):
        read(path)
    assert [q.kind for q in read(path, kind="open")] == ["open"]


def test_open_questions_that_are_asked_as_yes_no_may_be_answered_with_maybe(tmp_path: Path) -> None:
    records = [{"question": word, "answer": word} for word in ("Yes", "maybe")]
    path = write(tmp_path / "q.jsonl", records)
    assert {q.choices for q in read(path, kind="yes-no")} == {("yes", "no", "maybe")}
    assert {q.choices for q in read(path, kind="yes-no", limit=1)} == {("yes", "no", "maybe")}
    write(tmp_path / "q.jsonl", records[:1])
    assert {q.choices for q in read(path, kind="yes-no")} == {("yes", "no")}


def test_flashrags_natural_questions_are_read_by_their_format_too(tmp_path: Path) -> None:
    path = write(tmp_path / "test.jsonl", [{"id": "test_0", "question": "q", "golden_answers": ["x"]}])
    assert [(q.id, q.answers) for q in read(path, "nq")] == [("test_0", ("x",))]


def test_tasks_by_other_names(tmp_path: Path) -> None:
    passages = [{"docid": 7, "contents": '"T"\nx'}]
    record = {"_id": 1, "passages": passages, "questions": [{"question": "Q?", "golden_answers": ["a", "b"]}]}
    for name in ("t.jsonl", "t.NDJSON", "t.parquet"):
        (task,) = read_tasks(write(tmp_path / name, [record]))
        assert (task.id, task.passages, task.questions[0].asked.answers) == ("1", (Passage("7", "T", "x"),), ("a", "b"))


def test_data_in_a_directory_that_is_not_read_is_named_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["part-0.jsonl", "part-1.ndjson", "part-2.JSONL", "part-3.Jsonl.GZ"]
    for number, name in enumerate(names):
        write(tmp_path / name, [{**ADA, "id": number}])
    for other in ("part-4.json", "sub/table.CSV", "README.md", "_SUCCESS", "c.sql.gz", "authors.json", "LICENSE"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert [passage.id for passage in read_passages(str(tmp_path))] == ["0", "1", "2", "3"]
        corpus_files(str(tmp_path))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "authors.json, c.sql.gz, part-4.json, sub/table.CSV (read are" in line and str(tmp_path) in line


@pytest.mark.parametrize(
    "name", ["part-00000", "b.jsonl.zstd", "b.jsonl.1", "b.pq", "b.pdf", "b.html", "notes.md", "sub/b.jsonl.lz4"]
)
def test_a_file_is_named_whatever_its_ending_is(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.jsonl", [ADA])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    with caplog.at_level(logging.WARNING):
        corpus_files(str(tmp_path))
    assert f"not read, for the ending: {name} (" in caplog.text


def test_a_link_to_a_directory_is_followed_once(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    for place, number in ((folder, 1), (tmp_path / "elsewhere", 2)):
        place.mkdir()
        write(place / f"{number}.jsonl", [{**ADA, "id": number}])
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    assert [passage.id for passage in read_passages(str(folder))] == ["1", "2"]


@pytest.mark.parametrize("field", ["id", "group", "kind", "choices", "passage_ids", "passages"])
def test_a_field_of_a_question_that_is_nan_is_absent(tmp_path: Path, field: str) -> None:
    """As pandas writes an empty cell with json.dumps."""
    record = {"question": "q", "answer": "a"}
    write(tmp_path / "with.jsonl", [{**record, field: math.nan}])
    write(tmp_path / "without.jsonl", [record])
    assert read(str(tmp_path / "with.jsonl")) == read(str(tmp_path / "without.jsonl"))


def test_a_directory_of_nothing_but_other_files_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with refused(CorpusError, "no_file", uri=str(tmp_path)) as error:
        corpus_files(str(tmp_path))
    assert str(error.value).endswith("it has a.json")


def test_what_a_misnamed_file_is_is_told(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    for text, told in (
        (json.dumps([ADA], indent=1), "is a JSON array, and one object a line is expected; `jq"),
        (json.dumps(ADA) + "\n", r"(.jsonl if it has one JSON object a line)"),
        ("id\n", "is not a corpus file"),
    ):
        path.write_text(text)
        with refused(CorpusError, "wrong_ending", uri=str(path)) as error:
            corpus_files(str(path))
        assert told in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf_16_is_told_by_name_in_corpora_questions_and_tasks(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(ADA) + "\n", encoding=encoding)
    for reader, kind in ((read_passages, CorpusError), (read, EvaluationError), (read_tasks, CorpusError)):
        with pytest.raises(kind, match="UTF-16.*write it as UTF-8"):
            list(reader(str(path)))  # type: ignore[operator]


def test_a_parquet_file_of_questions_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.parquet").write_bytes(b"garbage")
    with refused(EvaluationError, "unreadable", uri=str(tmp_path / "q.parquet")):
        read(str(tmp_path / "q.parquet"))
