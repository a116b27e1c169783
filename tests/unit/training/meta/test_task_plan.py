"""What a draw makes of a task."""

from __future__ import annotations

from dataclasses import replace

import pytest

from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion
from regrad.lab.wording import LAB_PROMPTS
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import collate, encode_question, prompt_passages
from regrad.training.meta.config import ShapeConfig
from regrad.training.meta.task_plan import shape_task

OWN = tuple(Passage(f"p{i}", f"title {i}", f"text {i}") for i in range(4))
POOL = [Passage(f"d{i}", f"other {i}", f"foreign {i}") for i in range(20)] + list(OWN)
TASK = Task(OWN, (TaskQuestion("q0", "a", (1, 0, 2)), TaskQuestion("q1", "b", (3, 1))), "t")


def shaped(position: int = 0, **settings: object) -> Task:
    return shape_task(TASK, ShapeConfig(**settings), POOL, seed=1, position=position)  # type: ignore[arg-type]


def ids(task: Task, question: int = 0) -> list[str]:
    return [task.passages[i].id for i in task.questions[question].context]


def test_without_settings_a_task_stays_as_it_is() -> None:
    assert shaped() == TASK


def test_k_keeps_the_first_passages_of_each_question_and_drops_those_that_nobody_needs() -> None:
    task = shaped(k=1)
    assert ids(task, 0) == ["p1"] and ids(task, 1) == ["p3"]
    assert [passage.id for passage in task.passages] == ["p1", "p3"]


def test_one_question_a_task_is_drawn_anew_for_each_draw() -> None:
    drawn = {shaped(position, questions=1).questions[0].question for position in range(20)}
    assert drawn == {"q0", "q1"}
    assert all(len(shaped(position, questions=1).questions) == 1 for position in range(5))


def test_distractors_come_behind_a_questions_own_passages_and_are_never_its_own() -> None:
    for position in range(20):
        task = shaped(position, distractor_probability=1.0, distractors=2)
        assert ids(task, 0)[:3] == ["p1", "p0", "p2"]
        added = ids(task, 0)[3:]
        assert len(added) == 2 and all(name.startswith("d") for name in added)
        assert ids(task, 1)[2:] == added


def test_distractors_come_beside_the_first_k() -> None:
    task = shaped(0, k=1, distractor_probability=1.0, distractors=2)
    assert ids(task, 0)[0] == "p1" and len(ids(task, 0)) == 3
    assert all(name.startswith("d") for name in ids(task, 0)[1:])


def test_distractors_are_mixed_in_as_often_as_asked() -> None:
    count = sum(len(shaped(position, distractor_probability=0.3).passages) > 4 for position in range(500))
    assert 110 <= count <= 190


def test_a_draw_is_a_function_of_seed_and_position() -> None:
    settings = ShapeConfig(distractor_probability=0.5, questions=1, shuffled=True)
    first = [shape_task(TASK, settings, POOL, 1, position) for position in range(10)]
    assert first == [shape_task(TASK, settings, POOL, 1, position) for position in range(10)]
    assert first != [shape_task(TASK, settings, POOL, 2, position) for position in range(10)]


@pytest.mark.parametrize(("order", "expected"), [("best-last", ["p2", "p0", "p1"]), ("best-first", ["p1", "p0", "p2"])])
def test_the_order_of_passages_in_a_prompt(order: str, expected: list[str]) -> None:
    prompts = LAB_PROMPTS.model_copy(update={"order": order})
    ranked = prompt_passages(TASK, TASK.questions[0], ShapeConfig(in_prompt=True))
    assert [passage.id for passage in prompts.ordered(ranked)] == expected
    assert prompt_passages(TASK, TASK.questions[0], ShapeConfig()) == []


def test_a_share_of_the_draws_has_no_passage_in_the_prompt(tiny: LanguageModel) -> None:
    """Their gradients they all have; and nothing else is drawn otherwise."""
    shape = {"in_prompt": True, "questions": 1, "shuffled": True}
    always = [shaped(position, **shape) for position in range(500)]
    seldom = [shaped(position, **shape, in_prompt_probability=0.3) for position in range(500)]
    assert all(task.in_prompt for task in always)
    assert 110 <= sum(task.in_prompt for task in seldom) <= 190
    assert [replace(task, in_prompt=True) for task in seldom] == always
    without = next(task for task in seldom if not task.in_prompt)
    drawn, plain = (collate(tiny, [without], ShapeConfig(in_prompt=shown)) for shown in (True, False))
    assert drawn.questions.ids.equal(plain.questions.ids)
    assert int(drawn.membership.sum()) == len(without.questions[0].context)


def test_a_shuffled_order_is_another_one_for_other_draws() -> None:
    orders = {tuple(ids(shaped(position, shuffled=True))) for position in range(20)}
    assert len(orders) > 3
    assert all(sorted(order) == ["p0", "p1", "p2"] for order in orders)


def test_passages_in_the_prompt_change_the_questions_and_not_the_gradients(tiny: LanguageModel) -> None:
    without, within = (collate(tiny, [TASK], ShapeConfig(in_prompt=flag)) for flag in (False, True))
    assert without.passages.ids.equal(within.passages.ids)
    assert int(within.questions.lengths.min()) > int(without.questions.lengths.max())


def test_a_prompt_that_is_too_long_loses_the_worst_passages_first(tiny: LanguageModel) -> None:
    question = TASK.questions[0]
    whole, _ = encode_question(tiny, TASK, question, ShapeConfig(in_prompt=True))
    limit = ShapeConfig(in_prompt=True, max_tokens=len(whole) - 1)
    ids_, start = encode_question(tiny, TASK, question, limit)
    many = shape_task(TASK, ShapeConfig(distractor_probability=1.0, distractors=20), POOL, 1, 0)
    longest, _ = encode_question(tiny, many, many.questions[0], ShapeConfig(in_prompt=True, max_tokens=10_000))
    assert len(longest) <= 256, "the model's context"
    text = tiny.tokenizer.decode(ids_)
    assert len(ids_) < len(whole) and start < len(ids_)
    assert "1" in text and tiny.tokenizer.decode(whole).count("Passage") == text.count("Passage") + 1
