from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regrad.errors import CorpusError
from regrad.meta.tasks import TaskOrder, read_tasks

PASSAGE = {"id": "a", "title": "t", "text": "x"}


def write(tmp_path: Path, record: Any) -> str:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(record) + "\n")
    return str(path)


def test_context_defaults_to_all_passages(tmp_path: Path) -> None:
    record = {"passages": [PASSAGE, {**PASSAGE, "id": "b"}], "questions": [{"question": "q", "answer": "a"}]}
    assert read_tasks(write(tmp_path, record))[0].questions[0].context == (0, 1)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "needs non-empty 'passages'"),
        ({"passages": [PASSAGE], "questions": []}, "needs non-empty"),
        ({"passages": [{"id": "a"}], "questions": [{}]}, "field 'text'"),
        ({"passages": [PASSAGE], "questions": [{"question": "q"}]}, "must be non-empty strings"),
        ({"passages": [PASSAGE], "questions": [{"question": "q", "answer": "a", "context": [1]}]}, "from 0 to 0"),
        ({"passages": [PASSAGE], "questions": [{"question": "q", "answer": "a", "context": [True]}]}, "from 0 to 0"),
    ],
)
def test_a_bad_task_names_its_line_and_field(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(CorpusError, match=f"line 1.*{message}"):
        read_tasks(write(tmp_path, record))


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="does not exist"):
        read_tasks(str(tmp_path / "none.jsonl"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"a": 1}\nnot json\n')
    with pytest.raises(CorpusError, match="line 1"):
        read_tasks(str(bad))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(CorpusError, match="holds no tasks"):
        read_tasks(str(empty))


def test_workers_share_each_global_batch_whatever_their_number() -> None:
    order = TaskOrder(tasks=10, batch_size=4, seed=3)
    for step in range(7):
        alone = order.step(step)
        shared = [order.step(step, rank, 2) for rank in range(2)]
        assert sorted(shared[0] + shared[1]) == sorted(alone)
        assert len(shared[0]) == len(shared[1]) == 2


def test_every_epoch_sees_every_task_once_in_a_new_order() -> None:
    order = TaskOrder(tasks=6, batch_size=3, seed=0)
    first = order.step(0) + order.step(1)
    second = order.step(2) + order.step(3)
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second
    assert TaskOrder(6, 3, seed=0).step(2) == order.step(2)
    assert [TaskOrder(6, 3, seed=s).step(0) for s in range(4)] != [first[:3]] * 4
