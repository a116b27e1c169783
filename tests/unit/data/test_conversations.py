"""Questions inside conversations: what was said before comes with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrad.data.questions import Question
from regrad.errors import EvaluationError
from tests.tools.refusals import refused
from tests.unit.data.test_question_sets import DOQA, DOQA_QAS, OR_QUAC, lines, read, write


def test_or_quac_brings_what_was_said_before(tmp_path: Path) -> None:
    unanswerable = {**OR_QUAC, "qid": "C_ab_1_q#2", "answer": {"text": "CANNOTANSWER", "answer_start": 0}}
    unanswered = {"question": "Is it old?", "answer": {"text": "CANNOTANSWER", "answer_start": 0}}
    later = {**OR_QUAC, "qid": "C_ab_1_q#3", "history": [*OR_QUAC["history"], unanswered], "evidences": []}  # type: ignore[misc]
    first, third = read(write(tmp_path / "dev.txt", lines(OR_QUAC, unanswerable, later)), "or-quac")
    assert (first.id, first.answers, first.group) == ("C_ab_1_q#1", ("in 1912",), "C_ab_1")
    assert first.turns == (("user", "Who built it?"), ("assistant", "the town"))
    assert [passage.text for passage in first.passages] == OR_QUAC["evidences"]
    assert first.passage_ids == (first.passages[0].id,)
    assert third.turns == (*first.turns, ("user", "Is it old?")) and not third.passages
    assert first.query == "When was that?\nthe town\nWho built it?"


def test_doqa_as_it_is_published_and_as_rows(tmp_path: Path) -> None:
    context = {"title": "Bread", "background": "I bake.", "context": "Yes, ... slowly"}
    rows = [{**context, **qa, "answers": {"text": [one["text"] for one in qa["answers"]]}} for qa in DOQA_QAS]  # type: ignore[attr-defined, dict-item, index]
    for path in (write(tmp_path / "d.json", {"data": [DOQA]}), write(tmp_path / "rows.jsonl", lines(*rows))):
        first, last = read(path, "doqa")
        assert (first.question, first.answers, first.turns) == ("Can I freeze it?", ("Yes, for a month.",), ())
        assert (last.question, last.answers, last.group) == ("How do I thaw it?", ("slowly",), "C_cd")
        said = (("user", "Can I freeze it?"), ("assistant", "Yes, for a month."), ("user", "And longer?"))
        assert last.turns == said
        assert last.passages[0].title == "Bread" and last.passage_ids == (last.passages[0].id,)


def test_an_id_that_names_no_conversation_is_refused(tmp_path: Path) -> None:
    rows = [{"title": "Bread", "context": "Yes.", **DOQA_QAS[0], "id": name} for name in ("a-0", "b-0")]
    with refused(EvaluationError, "wrong_field", field="id"):
        read(write(tmp_path / "rows.jsonl", lines(*rows)), "doqa")


def test_turns_out_of_order_are_refused_since_a_later_one_would_be_history(tmp_path: Path) -> None:
    rows = [{"title": "Bread", "context": "Yes.", **qa} for qa in (DOQA_QAS[2], DOQA_QAS[0])]
    with refused(EvaluationError, "wrong_field", field="id"):
        read(write(tmp_path / "rows.jsonl", lines(*rows)), "doqa")


@pytest.mark.parametrize("labels", [[1], [1, 0, 0], ["1", "0"], [1, 2]])
def test_labels_that_are_not_one_for_each_passage_are_refused(tmp_path: Path, labels: list[object]) -> None:
    record = {**OR_QUAC, "retrieval_labels": labels}
    with refused(EvaluationError, "wrong_field", field="retrieval_labels"):
        read(write(tmp_path / "dev.txt", lines(record)), "or-quac")


def test_a_file_of_ones_own_may_have_turns(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada"}]
    (found,) = read(write(tmp_path / "own.jsonl", {"question": "When?", "answer": "1840", "turns": turns}), "jsonl")
    assert found.turns == (("user", "Who?"), ("assistant", "Ada"))
    wrong = {"question": "When?", "answer": "1840", "turns": [{"role": "system", "content": "x"}]}
    with refused(EvaluationError, "wrong_field", field="role"):
        read(write(tmp_path / "wrong.jsonl", wrong), "jsonl")


def test_what_is_added_to_a_query_stands_before_what_an_encoder_cuts_off() -> None:
    asked = Question("1", "When?", ("1840",), turns=(("user", "Who?"), ("assistant", "Ada")))
    assert asked.query_with(" [SEP] 1840") == "When? [SEP] 1840\nAda\nWho?"
    assert asked.query_with("") == asked.query
