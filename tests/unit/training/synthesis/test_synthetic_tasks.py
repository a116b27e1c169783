"""From drafts to tasks: what only the whole corpus can tell, and contexts as retrieval would bring them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from regrad.data.augmented import Pair
from regrad.data.passages import Passage
from regrad.models.config import ModelConfig
from regrad.training.synthesis.config import SynthesisConfig
from regrad.training.synthesis.tasks import make_tasks, select_pairs, synthesis_report
from regrad.training.synthesis.writer import Draft, Rejected

Record = dict[str, Any]


def config(**settings: Any) -> SynthesisConfig:
    return SynthesisConfig(model=ModelConfig(path="m"), corpus="c", output="o", **settings)


def draft(passage_id: str, *pairs: tuple[str, str]) -> Draft:
    return Draft(Passage(passage_id, passage_id.upper(), "text"), 8, tuple(Pair(*pair) for pair in pairs))


def many(count: int, each: int = 2) -> list[Draft]:
    return [draft(f"p{i}", *((f"question {j} of p{i}?", f"answer {j}") for j in range(each))) for i in range(count)]


def reasons(drafts: list[Draft]) -> dict[str, int]:
    return dict(Counter(item.reason for item in drafts for item in item.rejected))


def test_a_question_with_two_answers_in_the_corpus_is_dropped_everywhere() -> None:
    drafts = [
        draft("a", ("Where was she born?", "Girton"), ("Who is A?", "x")),
        draft("b", ("where was she born", "Rom")),
    ]
    settled = select_pairs(drafts, config())
    assert [item.pairs for item in settled] == [(Pair("Who is A?", "x"),), ()]
    assert reasons(settled) == {"asked of several passages with different answers": 2}


def test_a_question_with_the_same_answer_in_two_passages_stays_in_both() -> None:
    drafts = [draft("a", ("Who made it?", "Ada")), draft("b", ("who made it", "ada."))]
    assert select_pairs(drafts, config()) == drafts


def test_questions_are_limited_with_different_answers_first() -> None:
    pairs = [("q1", "x"), ("q2", "x"), ("q3", "y"), ("q4", "X."), ("q5", "z")]
    [settled] = select_pairs([draft("a", *pairs)], config(questions=3))
    assert [pair.question for pair in settled.pairs] == ["q1", "q3", "q5"]
    [more] = select_pairs([draft("a", *pairs)], config(questions=4))
    assert [pair.question for pair in more.pairs] == ["q1", "q2", "q3", "q5"]
    assert reasons([settled]) == {"more questions than are kept": 2}


def test_with_search_results_a_question_has_to_find_its_passage() -> None:
    drafts = [draft("a", ("q1", "x"), ("q2", "y"), ("q3", "z"))]
    hits = {"q1": ["a", "b"], "q2": ["b", "a"], "q3": []}
    [strict] = select_pairs(drafts, config(), hits)
    assert [pair.question for pair in strict.pairs] == ["q1"]
    assert reasons([strict]) == {"the question does not find its passage": 2}
    [second] = select_pairs(drafts, config(max_rank=2), hits)
    assert [pair.question for pair in second.pairs] == ["q1", "q2"]


def test_an_id_that_comes_again_is_used_once() -> None:
    bad = Draft(Passage("a", "", ""), rejected=(Rejected("not a passage"),))
    settled = select_pairs([bad, draft("a", ("q1", "x")), draft("a", ("q2", "y"))], config())
    assert [len(item.pairs) for item in settled] == [0, 1, 0]
    assert reasons(settled) == {"not a passage": 1, "passage id occurs more than once": 1}


def test_every_passage_is_in_as_many_tasks_as_configured_with_all_its_questions() -> None:
    records = list(make_tasks([*many(21), draft("without")], config(passages_per_task=8, tasks_per_passage=3)))
    assert [len(record["passages"]) for record in records] == [8, 8, 5] * 3
    assert Counter(p["id"] for record in records for p in record["passages"]) == {f"p{i}": 3 for i in range(21)}
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        for question in record["questions"]:
            own = record["passages"][question["context"][0]]
            assert question["question"].endswith(f"of {own['id']}?")
        assert len(record["questions"]) == 2 * len(record["passages"])


@pytest.mark.parametrize("neighbours", [0, 1, 2, 4])
def test_contexts_are_the_passage_alone_or_with_its_neighbours(neighbours: int) -> None:
    records = list(make_tasks(many(160), config(neighbours=neighbours, neighbours_fraction=0.5, tasks_per_passage=2)))
    sizes = Counter(len(question["context"]) for record in records for question in record["questions"])
    assert set(sizes) == {1, 1 + neighbours}
    if neighbours:
        assert 0.2 < sizes[1] / sizes.total() < 0.8
    for record in records:
        for question in record["questions"]:
            assert len(set(question["context"])) == len(question["context"])


def test_a_corpus_smaller_than_a_ring_still_makes_tasks() -> None:
    for count in (1, 2, 3):
        for record in make_tasks(many(count), config(neighbours=2, neighbours_fraction=1.0)):
            assert {len(question["context"]) for question in record["questions"]} == {count}
    assert list(make_tasks([draft("a")], config())) == []


def test_neighbours_are_mostly_what_search_finds_beside_the_passage() -> None:
    """Twenty groups of five: with search results most neighbours are of the same group, without them few are."""
    drafts = many(100)
    group = {item.passage.id: number // 5 for number, item in enumerate(drafts)}
    hits = {p.question: [i for i in group if group[i] == group[d.passage.id]] for d in drafts for p in d.pairs}

    def near(records: list[Record]) -> float:
        rings = [[group[p["id"]] for p in record["passages"]] for record in records]
        steps = [a == b for ring in rings for a, b in pairwise(ring)]
        return sum(steps) / len(steps)

    assert near(list(make_tasks(drafts, config(), hits))) > 0.4
    assert near(list(make_tasks(drafts, config()))) < 0.15


def test_tasks_are_fixed_by_the_seed() -> None:
    assert list(make_tasks(many(30), config())) == list(make_tasks(many(30), config()))
    assert list(make_tasks(many(30), config())) != list(make_tasks(many(30), config(seed=1)))


def test_meta_training_reads_the_tasks(tmp_path: Path) -> None:
    from regrad.data.tasks import read_tasks

    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in make_tasks(many(9), config())))
    assert len(read_tasks(str(path))) == 8


def test_the_report_counts_everything() -> None:
    drafts = select_pairs([*many(3), draft("a", ("q", "x"), ("q0", "x"))], config(questions=1))
    assert synthesis_report(drafts, 5, 1.26) == {
        "passages": 4,
        "passages_with_questions": 4,
        "candidates": 32,
        "kept": 4,
        "rejected": {"more questions than are kept": 4},
        "tasks": 5,
        "seconds": 1.3,
    }
