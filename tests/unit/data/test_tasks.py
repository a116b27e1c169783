from __future__ import annotations

import gzip
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrad.data.tasks import ScannedTask, Task, TaskQuestion, duplicates, read_tasks, task_files
from regrad.errors import CorpusError
from regrad.lab.wording import LAB_PROMPTS
from regrad.models.config import ModelConfig
from regrad.training.meta.collate import collate
from regrad.training.meta.config import ShapeConfig
from regrad.training.meta.task_plan import Lengths, check_dev_tasks, scan
from tests.tools.chats import without_end_token
from tests.tools.refusals import refused

PASSAGE = {"id": "a", "title": "t", "text": "x"}


def write(tmp_path: Path, *records: Any) -> str:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_context_defaults_to_all_passages(tmp_path: Path) -> None:
    record = {"passages": [PASSAGE, {**PASSAGE, "id": "b"}], "questions": [{"question": "q", "answer": "a"}]}
    assert read_tasks(write(tmp_path, record))[0].questions[0].context == (0, 1)


def asking(**question: Any) -> dict[str, Any]:
    return {"passages": [PASSAGE], "questions": [{"question": "q", "answer": "a", **question}]}


@pytest.mark.parametrize(
    ("record", "code", "place", "field"),
    [
        ([], "array", "", ""),
        ({}, "no_task", "", ""),
        ({**asking(), "questions": []}, "no_task", "", ""),
        (asking(answer=""), "wrong_field", " question 0", "answer"),
        ({**asking(), "id": [3]}, "wrong_field", "", "id"),
        ({"passages": [{"id": "a"}], "questions": [{}]}, "missing_field", " passage 0", "text"),
        ({**asking(), "questions": [{"question": "q"}]}, "missing_field", " question 0", "answer"),
        (asking(context=[1]), "wrong_field", " question 0", "context"),
        (asking(context=[True]), "wrong_field", " question 0", "context"),
    ],
)
def test_a_bad_task_names_its_line_and_field(tmp_path: Path, record: Any, code: str, place: str, field: str) -> None:
    path = write(tmp_path, record)
    with refused(CorpusError, code, where=f"{path} line 1{place}", **({"field": field} if field else {})):
        read_tasks(path)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with refused(CorpusError, "not_found"):
        read_tasks(str(tmp_path / "none.jsonl"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"a": 1}\nnot json\n')
    with refused(CorpusError, "no_task", where=f"{bad} line 1"):
        read_tasks(str(bad))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with refused(CorpusError, "empty", uri=str(empty)):
        read_tasks(str(empty))


def test_a_task_survives_the_way_to_json_and_back() -> None:
    questions = [{"question": "q", "answer": "a", "context": [1, 0, 1]}]
    task = Task.from_record({"id": "x", "passages": [PASSAGE, {**PASSAGE, "id": "b"}], "questions": questions})
    assert task.questions[0].context == (1, 0)
    assert Task.from_record(json.loads(json.dumps(task.to_record()))) == task


def test_parquet_jsonl_and_gzip_in_one_directory_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    def records(start: int) -> list[dict[str, Any]]:
        asked = {"question": "q", "answer": "a", "context": [0]}
        return [{"id": f"t{i}", "passages": [PASSAGE], "questions": [asked]} for i in range(start, start + 2)]

    lines = "".join(json.dumps(record) + "\n" for record in records(2))
    pq.write_table(pa.Table.from_pylist(records(0)), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.replace("t2", "t4").replace("t3", "t5").encode()))
    (tmp_path / "notes.txt").write_text("not tasks")
    assert [task.id for task in read_tasks(str(tmp_path))] == [f"t{i}" for i in range(6)]
    (tmp_path / "d.parquet").write_bytes(b"garbage")
    with refused(CorpusError, "damaged", uri=str(tmp_path / "d.parquet")):
        read_tasks(str(tmp_path))


def test_below_a_directory_nothing_is_left_out_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(["a.jsonl", "part/b.JSONL", "part/deep/c.ndjson", "d.jl"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        record = {"id": str(number), "passages": [PASSAGE], "questions": [{"question": "q", "answer": "a"}]}
        (tmp_path / name).write_text(json.dumps(record))
    for name in ("_part.jsonl", "e.tsv", "README.md"):
        (tmp_path / name).write_text("no tasks")
    with caplog.at_level("WARNING"):
        assert [task.id for task in read_tasks(str(tmp_path))] == ["0", "3", "1", "2"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "not read, for the ending: e.tsv (read are" in line


def test_what_a_table_writes_for_nothing_is_nothing(tmp_path: Path) -> None:
    question = {"question": "q", "answer": "a", "context": math.nan, "kind": math.nan, "choices": None}
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"id": math.nan, "passages": [PASSAGE], "questions": [question]}))
    (task,) = read_tasks(str(path))
    assert task.questions == (TaskQuestion("q", "a", (0,)),) and task.id == f"{path} line 1"


def test_a_directory_without_tasks_is_a_clear_error(tmp_path: Path) -> None:
    with refused(CorpusError, "no_file", uri=str(tmp_path)):
        task_files(str(tmp_path))


def test_bad_records_come_with_file_and_line_and_stop_nothing(tmp_path: Path, tiny_path: Path) -> None:
    good = {"passages": [PASSAGE], "questions": [{"question": "q", "answer": "a"}]}
    long = {**good, "passages": [{**PASSAGE, "text": "x " * 300}]}
    wordy = {**good, "questions": [{"question": "q " * 300, "answer": "a"}]}
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (good, {"passages": [PASSAGE]}, long, wordy)) + "{\n")
    lengths = Lengths.of(ModelConfig(path=str(tiny_path), prompts=LAB_PROMPTS))
    shape = ShapeConfig(max_passage_tokens=100, max_tokens=200)
    found = [ScannedTask(head.place, task, head.problem) for head, task in scan(0, str(path), lengths, shape)]
    assert [item.problem.removeprefix(str(path)) for item in found[:2]] == [
        "",
        " line 2: a task needs non-empty 'questions', and this record has passages",
    ]
    assert "line 3 passage 0: " in found[2].problem and "more than 100" in found[2].problem
    assert "line 4 question 0: " in found[3].problem and "more than 200" in found[3].problem
    assert "line 5 is not JSON: " in found[4].problem
    assert found[0].task is not None and found[0].task.id == f"{path} line 1"


def test_a_dev_task_whose_answer_would_not_fit_is_refused_before_training(tmp_path: Path, tiny: Any) -> None:
    """The tiny model's context is 256."""
    questions = [{"question": "q " * 116, "answer": "a"}]
    path = write(tmp_path, {"id": "long", "passages": [PASSAGE], "questions": questions})
    lengths = Lengths.of(tiny.config)
    check_dev_tasks(path, lengths, ShapeConfig(), 5)
    with refused(CorpusError, "bad_dev_tasks", bad=1, problems=["corpus.no_room_for_answer"]) as info:
        check_dev_tasks(path, lengths, ShapeConfig(), 20)
    assert "task long question 0: the prompt has" in str(info.value)


def test_all_bad_dev_tasks_are_named_at_once_or_left_out(
    tmp_path: Path, tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    questions = [{"question": "q", "answer": "a"}]
    long = {**PASSAGE, "text": "x " * 60}
    records = [
        {"id": f"{'long' if bad else 'good'}-{number}", "passages": [long if bad else PASSAGE], "questions": questions}
        for number, bad in enumerate([True, False, True, False, True])
    ]
    path, lengths = write(tmp_path, *records), Lengths.of(tiny.config)
    with refused(CorpusError, "bad_dev_tasks", bad=3, problems=["corpus.passage_too_long"] * 3) as info:
        check_dev_tasks(path, lengths, ShapeConfig(max_passage_tokens=40), 5)
    assert [f"long-{number}" in str(info.value) for number in range(5)] == [True, False, True, False, True]
    left = check_dev_tasks(path, lengths, ShapeConfig(max_passage_tokens=40, bad_tasks="skip"), 5)
    assert [task.id for task in left.read()] == ["good-1", "good-3"]
    assert "3 of 5 dev tasks" in caplog.text
    assert left.digest != check_dev_tasks(path, lengths, ShapeConfig(), 5).digest
    path = write(tmp_path, records[0])
    with refused(CorpusError, "bad_dev_tasks", bad=1):
        check_dev_tasks(path, lengths, ShapeConfig(max_passage_tokens=40, bad_tasks="skip"), 5)


def test_a_task_may_keep_its_passages_out_of_the_prompt() -> None:
    record = {"id": "t", "passages": [PASSAGE], "questions": [{"question": "q", "answer": "a"}], "in_prompt": False}
    task = Task.from_record(record)
    assert not task.in_prompt and Task.from_record(task.to_record()) == task
    assert "in_prompt" not in replace(task, in_prompt=True).to_record(), "as files had it before"
    assert Task.from_record({**record, "in_prompt": None}).in_prompt, "Parquet's word for: nothing was said"
    with refused(CorpusError, "no_task", where="here"):
        Task.from_record({**record, "in_prompt": "no"}, "here")


def test_lengths_count_what_training_sees(tiny: Any, tiny_path: Path) -> None:
    """With passages in the prompt, too, and where a task keeps them out."""
    task = Task.from_record(
        {"passages": [PASSAGE, {**PASSAGE, "id": "b"}], "questions": [{"question": "q", "answer": "a"}]}
    )
    shapes, tasks = (ShapeConfig(), ShapeConfig(in_prompt=True)), (task, replace(task, in_prompt=False))
    for lm, shape, task in itertools.product((tiny, without_end_token(tiny)), shapes, tasks):
        lengths, batch = Lengths.of(lm.config), collate(lm, [task], shape)
        assert int(batch.questions.lengths[0]) == lengths.question(task, task.questions[0], shape)
        assert int(batch.passages.lengths[0]) == lengths.passage(task.passages[0])


def test_a_repeated_id_names_both_places() -> None:
    assert duplicates([("f line 1", "a"), ("f line 2", "b"), ("g line 1", "a")]) == {
        "g line 1": "g line 1: task id 'a' is also at f line 1"
    }
