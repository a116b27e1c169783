"""Questions with the same passages in their prompts are read in one row: the same step, of fewer tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion
from regrad.models.batching import TokenBatch
from regrad.models.config import ActsOn
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import MetaBatch, collate
from regrad.training.meta.config import InnerConfig, ShapeConfig, StrategyConfig, StrategyName
from regrad.training.meta.objective import outer_gradient
from regrad.training.meta.reading import reading_sums
from regrad.training.meta.strategies import make_strategy
from tests.unit.training.meta.test_meta_gradient import at, relative

IN_PROMPT = ShapeConfig(in_prompt=True)


def tasks(passages: list[Passage], uneven: bool = False) -> list[Task]:
    """Two tasks of a passage and three questions; one of three passages and two times three, or five, questions."""
    asked = [("Where was A born?", "Thomville"), ("Who employs A?", "the Rasoft works"), ("What?", "chess")]
    one = tuple(TaskQuestion(question, answer, (0,)) for question, answer in asked)
    both = tuple(TaskQuestion(question, answer, (1, 0)) for question, answer in asked)
    third = Task(tuple(passages[2:5]), one[:2] + both if uneven else one + both)
    return [Task((passages[0],), one), Task((passages[1],), one), third]


def both_ways(lm: LanguageModel, of: list[Task]) -> tuple[MetaBatch, MetaBatch]:
    """Packed, and each question in a row of its own."""
    packed, separate = collate(lm, of, IN_PROMPT), collate(replace(lm, packs=False), of, IN_PROMPT)
    assert packed.questions.packing is not None and separate.questions.packing is None
    assert packed.tokens == separate.tokens
    return packed, separate


@pytest.mark.slow
@pytest.mark.parametrize("acts_on", ["everything", "answer"])
@pytest.mark.parametrize(
    ("name", "steps", "tolerance"),
    # A difference divides by its step what is rounded in the direction.
    [("graph", 1, 1e-10), ("graph", 2, 1e-10), ("hvp", 1, 1e-10), ("first-order", 1, 1e-10), ("difference", 1, 1e-9)],
)
def test_every_strategy_gives_the_same(
    tiny64: LanguageModel,
    passages: list[Passage],
    name: StrategyName,
    steps: int,
    tolerance: float,
    acts_on: ActsOn,
) -> None:
    packed, separate = both_ways(tiny64, tasks(passages))
    assert (packed.questions.ids.shape[0], packed.questions_per_update, packed.rows_per_update) == (4, 3, 1)
    strategy = make_strategy(StrategyConfig(name=name, chunk_tokens=64), InnerConfig(acts_on=acts_on, steps=steps))
    found, expected = (strategy(tiny64, at(tiny64), batch) for batch in (packed, separate))
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-10, atol=0)
    assert relative(found.phi0, expected.phi0) < tolerance
    assert relative(found.alpha, expected.alpha) < 1e-10


def test_chunks_of_packed_rows_and_recomputed_activations_change_nothing(
    tiny64: LanguageModel, passages: list[Passage]
) -> None:
    packed, separate = both_ways(tiny64, tasks(passages))
    updates = at(tiny64).phi0 + 0.01 * torch.arange(4, dtype=torch.float64)[:, None]
    expected = outer_gradient(tiny64, updates, separate, 10**6)
    for tokens, recompute in ((1, False), (2 * packed.questions.ids.shape[1], True), (10**6, False)):
        found = outer_gradient(tiny64, updates, packed, tokens, recompute)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_chunk_holds_as_many_updates_as_their_rows_allow(
    tiny64: LanguageModel, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, _ = both_ways(tiny64, tasks(passages))
    sizes: list[int] = []
    take = TokenBatch.take
    monkeypatch.setattr(TokenBatch, "take", lambda batch, rows: sizes.append(len(rows)) or take(batch, rows))
    outer_gradient(tiny64, at(tiny64).phi0.expand(4, -1), packed, 3 * packed.questions.ids.shape[1])
    assert sizes == [3, 1]


def test_the_losses_of_reading_are_the_same(tiny64: LanguageModel, passages: list[Passage]) -> None:
    found, expected = (reading_sums(lm, at(tiny64), tasks(passages), shape=IN_PROMPT) for lm in _both(tiny64))
    assert found.tasks == expected.tasks > 0
    for name in ("right", "other", "none"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6)


def _both(lm: LanguageModel) -> tuple[LanguageModel, LanguageModel]:
    return lm, replace(lm, packs=False)


def test_questions_that_are_alone_under_their_update_stay_as_they_are(
    tiny: LanguageModel, passages: list[Passage]
) -> None:
    uneven = collate(tiny, tasks(passages, uneven=True), IN_PROMPT)
    assert uneven.questions_per_update == 1 and uneven.questions.packing is None
    assert collate(tiny, tasks(passages)).questions.packing is None, "prompts without passages have little in common"


def test_questions_of_one_update_are_packed_although_their_passages_are_of_several_tasks(
    tiny: LanguageModel, passages: list[Passage]
) -> None:
    (first, *_) = tasks(passages)
    twice = collate(tiny, [first, first], IN_PROMPT)
    assert (twice.questions.ids.shape[0], twice.questions_per_update) == (1, 6)
    assert twice.weights.tolist() == pytest.approx([1 / 6] * 6)
