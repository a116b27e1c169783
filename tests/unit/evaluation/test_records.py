"""Files of records: written whole, read back equal, and refused when they are not what was asked."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrad.data.questions import Question
from regrad.errors import EvaluationError, StorageError
from regrad.evaluation.records import (
    RECORD,
    Record,
    check_records,
    read_metadata,
    read_record_table,
    read_records,
    write_records,
)
from regrad.storage import Storage
from tests.tools.questions import posed
from tests.tools.records import record
from tests.tools.refusals import refused

RECORDS = [
    record(),
    record(question_id="q2", answers=("yes",), kind="yes-no", raw="Ærø 東京\x00", parsed=False, em=0.0, correct=False),
    record(question_id="q3", passage_ids=(), passage_scores=(), note="no passage found", bytes_fetched=2**40),
]


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


@pytest.mark.parametrize("uri", ["", "memory://cells"])
def test_records_come_back_as_they_were(uri: str, tmp_path: Path) -> None:
    storage = Storage(uri or tmp_path)
    write_records(storage, "cells/one.parquet", RECORDS, {"settings": "3f"})
    assert read_records(storage, "cells/one.parquet") == RECORDS
    assert read_metadata(storage, "cells/one.parquet") == {"settings": "3f"}
    assert read_record_table(storage, "cells/one.parquet").schema.equals(RECORD)


def test_records_of_before_demonstrations_were_noted_are_read(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_records(
        storage, "one.parquet", [replace(one, demonstration_ids=("d",)) for one in RECORDS], {"settings": "3f"}
    )
    earlier = read_record_table(storage, "one.parquet").drop_columns(["demonstration_ids"])
    (tmp_path / "one.parquet").write_bytes(_parquet(earlier))
    assert read_records(storage, "one.parquet") == RECORDS
    assert read_record_table(storage, "one.parquet").schema.equals(RECORD)
    assert read_metadata(storage, "one.parquet") == {"settings": "3f"}


def test_the_columns_are_the_fields() -> None:
    assert RECORD.names == [field.name for field in fields(Record)]


def test_a_cell_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with refused(EvaluationError, "bad_record", name="one.parquet"):
        write_records(storage, "one.parquet", [record(raw="\ud800")])
    with refused(EvaluationError, "not_one_cell", problems={"more than once": ["q1"]}):
        write_records(storage, "one.parquet", [record(), record()])
    cells = [f"rag on people (lab, k=3, seed {seed})" for seed in (0, 1)]
    with refused(EvaluationError, "not_one_cell", problems={"cells in one file": cells}):
        write_records(storage, "one.parquet", [record(), record(question_id="q2", seed=1)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"em": 1.5}, "em 1.5 is not between 0 and 1"),
        ({"f1": float("nan")}, "f1 nan is not between 0 and 1"),
        ({"milliseconds": float("inf")}, "milliseconds inf is not a finite number from 0"),
        ({"prompt_tokens": -1}, "prompt_tokens -1 is not a finite number from 0"),
        ({"kind": "essay"}, "kind 'essay' is none of open, yes-no, choice"),
        ({"passage_scores": (1.0,)}, "3 passages with 1 scores"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], fault: str, tmp_path: Path) -> None:
    problems = {"records with impossible values": [f"q1 ({fault})"]}
    with refused(EvaluationError, "impossible_values", problems=problems):
        write_records(Storage(tmp_path), "one.parquet", [record(**values)])


def test_a_file_of_something_else_is_a_clear_error(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_records(storage, "one.parquet", RECORDS)
    whole, table = storage.read("one.parquet"), read_record_table(storage, "one.parquet")
    lacking = {"problems": {"columns missing": ["raw", "em"]}}
    impossible = {"problems": {"records with impossible values": ["q2 (em 2.0 is not between 0 and 1)"]}}
    damaged: list[tuple[str, bytes, str, dict[str, Any]]] = [
        ("text", b"id,answer\n", "records_damaged", {}),
        ("cut", whole[: len(whole) // 2], "records_damaged", {}),
        ("less", _parquet(table.drop_columns(["em", "raw"])), "columns_missing", lacking),
        ("other", _parquet(table.set_column(12, "em", pa.array(["high"] * 3))), "records_damaged", {}),
        ("null", _parquet(table.set_column(12, "em", pa.array([1.0, None, 0.0]))), "records_damaged", {}),
        ("high", _parquet(table.set_column(12, "em", pa.array([1.0, 2.0, 0.0]))), "impossible_values", impossible),
    ]
    for name, data, code, found in damaged:
        storage.write(name, data)
        with refused(EvaluationError, code, **found):
            read_records(storage, name)
    with refused(StorageError, "not_found"):
        read_records(storage, "none.parquet")


def test_a_column_more_is_left_out(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_records(storage, "one.parquet", RECORDS)
    more = read_record_table(storage, "one.parquet").append_column("mine", pa.array([1, 2, 3]))
    storage.write("more", _parquet(more))
    assert read_records(storage, "more") == RECORDS


def _asked(row: Record) -> Question:
    return posed(row.answers, row.kind, (), row.question_id, row.question)


def test_records_of_the_questions_in_any_order_are_accepted() -> None:
    check_records(RECORDS, [_asked(row) for row in reversed(RECORDS)])


def test_records_that_do_not_match_the_questions_are_listed() -> None:
    questions = [_asked(row) for row in RECORDS]
    with refused(EvaluationError, "ids_do_not_match", problems={"missing": ["q2", "q3"]}):
        check_records(RECORDS[:1], questions)
    problems = {"missing": ["q3"], "unknown": ["q4"], "more than once": ["q1"]}
    with refused(EvaluationError, "ids_do_not_match", problems=problems):
        check_records([*RECORDS[:2], record(), record(question_id="q4")], questions)
    changed = {"with other words, answers or kind than in the question set": ["q1"]}
    with refused(EvaluationError, "ids_do_not_match", problems=changed):
        check_records([record(answers=("Ely",)), *RECORDS[1:]], questions)
    cells = [f"rag on people (lab, k={k}, seed 0)" for k in (3, 5)]
    with refused(EvaluationError, "ids_do_not_match", problems={"cells in one file": cells}):
        check_records([record(k=5), *RECORDS[1:]], questions)
    with refused(EvaluationError, "ids_do_not_match", problems={"missing": ["q1", "q2", "q3"]}):
        check_records([], questions)


def test_a_long_list_of_ids_is_shown_in_part() -> None:
    questions = [posed(("x",), id=f"question {number} " + "x" * 1000) for number in range(900)]
    with refused(EvaluationError, "ids_do_not_match") as caught:
        check_records(RECORDS, questions)
    assert len(caught.value.fields["problems"]["missing"]) == 900  # type: ignore[index]
    assert len(str(caught.value)) < 600
