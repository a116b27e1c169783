"""The readers on real files, where they lie beside the project (or in `REGRAD_TEST_DATA`)."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.questions import Question
from regrad.evaluation.leaks import find_leaks

DATA = Path(os.environ.get("REGRAD_TEST_DATA", "nowhere"))

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="REGRAD_TEST_DATA is not a directory of real question files")


def read(name: str, format_: str) -> list[Question]:
    return read_questions(QuestionSetConfig(name=name, path=str(DATA / name), format=format_))


def test_2wikimultihopqa_and_complexwebquestions() -> None:
    wiki = read("2wiki_questions.json", "2wikimultihopqa")
    web = read("cwq_questions.json", "complexwebquestions")
    assert len(wiki) == len(web) == 500
    assert {q.kind for q in wiki + web} == {"open"}
    assert wiki[0].answers == ("Małgorzata Braunek",)
    assert sum(len(q.answers) > 1 for q in wiki) > 100
    assert web[0] == Question("0", web[0].question, ("Muhammad Zia-ul-Haq",))


def test_pubmedqa() -> None:
    found = read("pubmedqa_dev.json", "pubmedqa")
    assert len(found) == 500
    assert Counter(q.answers for q in found).keys() == {("yes",), ("no",), ("maybe",)}
    assert all(q.passage_ids == (q.passages[0].id,) == (q.id,) and len(q.passages[0].text) > 100 for q in found)


def test_different_sets_do_not_leak_and_a_set_leaks_into_itself() -> None:
    wiki, web = read("2wiki_questions.json", "2wikimultihopqa"), read("cwq_questions.json", "complexwebquestions")
    assert find_leaks(wiki, web) == []
    assert [leak.how for leak in find_leaks(wiki, wiki)] == ["exact"] * 500
