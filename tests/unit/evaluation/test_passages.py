"""Where the passages of a question come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrad.data.passages import Passage, encode_passages
from regrad.data.questions import Question
from regrad.errors import EvaluationError
from regrad.evaluation.config import PassagesConfig
from regrad.evaluation.passages import PassageFinder
from tests.tools.refusals import refused


@pytest.fixture
def corpus(tmp_path: Path, passages: list[Passage]) -> str:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(encode_passages(passages))
    return str(path)


def found(corpus: str, question: Question, k: int, seed: int = 0, **settings: Any) -> list[str]:
    config = PassagesConfig.model_validate({"source": "gold", "corpus": corpus, **settings})
    [one] = PassageFinder(config, seed).find([question], k)
    return [passage.id for passage in one.passages]


def asked(*gold: str) -> Question:
    return Question("q", "Who?", ("a",), passage_ids=gold)


def test_gold_comes_first_and_distractors_fill_up(corpus: str, passages: list[Passage]) -> None:
    gold = passages[3].id
    ids = found(corpus, asked(gold), 5, distractors="random")
    assert ids[0] == gold
    assert len(set(ids)) == 5
    assert found(corpus, asked(gold), 5) == [gold]


def test_more_distractors_begin_with_the_same(corpus: str, passages: list[Passage]) -> None:
    question = asked(passages[3].id)
    assert found(corpus, question, 6, distractors="random")[:3] == found(corpus, question, 3, distractors="random")


def test_the_seed_alone_decides_what_is_drawn(corpus: str, passages: list[Passage]) -> None:
    question = asked(passages[3].id)
    draws = [found(corpus, question, 6, seed, distractors="random") for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_random_passages_are_never_the_question_s_own(corpus: str, passages: list[Passage]) -> None:
    question = asked(*(passage.id for passage in passages[:8]))
    drawn = found(corpus, question, 12, source="random")
    assert sorted(drawn) == sorted(passage.id for passage in passages[8:])


def test_shuffled_passages_are_the_same_ones(corpus: str, passages: list[Passage]) -> None:
    question = asked(passages[3].id)
    in_order = found(corpus, question, 8, distractors="random")
    shuffled = found(corpus, question, 8, distractors="random", shuffle=True)
    assert sorted(shuffled) == sorted(in_order)
    assert shuffled != in_order


def test_passages_that_come_with_the_question(corpus: str, passages: list[Passage]) -> None:
    question = Question("q", "Who?", ("a",), passages=tuple(passages[:4]))
    assert found(corpus, question, 2, source="given") == [passage.id for passage in passages[:2]]


def test_a_gold_passage_that_is_nowhere_is_named(corpus: str) -> None:
    with refused(EvaluationError, "passage_not_found", question_id="q", passage_id="nobody"):
        found(corpus, asked("nobody"), 1)
