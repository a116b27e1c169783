"""Training LoRAs as rows: each as if alone, and against torch's own AdamW on one merged model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regrad.data.augmented import Augmented, Pair
from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import BankError
from regrad.lab.world import World
from regrad.methods.tta import Adapted, TtaConfig, TtaragConfig, adapt_online
from regrad.models.batching import sequence_losses
from regrad.models.loading import LanguageModel
from regrad.models.subspace import save_adapter
from regrad.training.lora.batched import AdapterTrainer, train_rows
from regrad.training.lora.config import AdamWConfig, AdapterConfig
from regrad.training.lora.examples import (
    Example,
    adapter_examples,
    passage_example,
    suffix_example,
)
from regrad.training.lora.lora_artifact import StaticLora
from tests.tools.augmenting import augmented
from tests.tools.refusals import refused

WHO = Question("", "Who?", ("me",))
FAST = AdamWConfig(lr=1e-2, weight_decay=0.1, clip=0.5)


def start(lm: LanguageModel, rows: int) -> Tensor:
    return lm.subspace.initial(0).to(next(lm.model.parameters()).dtype).expand(rows, -1)


def by_hand(lm: LanguageModel, examples: list[Example], config: AdamWConfig, steps: int) -> Tensor:
    """The same training with autograd through the whole loss and torch's AdamW on one parameter."""
    from regrad.training.lora.examples import example_batch

    phi = start(lm, 1)[0].clone().requires_grad_()
    optimizer = torch.optim.AdamW([phi], lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    for _ in range(steps):
        with lm.lora.applied(phi):
            loss = sequence_losses(lm, example_batch(lm, examples)).mean()
        optimizer.zero_grad()
        loss.backward()
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_([phi], config.clip)
        optimizer.step()
    return phi.detach()


def test_a_row_is_trained_as_torch_trains_one_parameter(tiny64: LanguageModel, passages: list[Passage]) -> None:
    examples = [passage_example(tiny64, passage) for passage in passages[:3]]
    found = train_rows(tiny64, start(tiny64, 1), [[examples] * 4], FAST)
    expected = by_hand(tiny64, examples, FAST, 4)
    assert (expected - start(tiny64, 1)[0]).norm() > 0.1
    torch.testing.assert_close(found.values[0], expected, rtol=1e-6, atol=1e-8)


def test_rows_of_different_lengths_and_step_counts_are_each_as_if_alone(
    tiny64: LanguageModel, passages: list[Passage]
) -> None:
    examples = [passage_example(tiny64, passage) for passage in passages[:6]]
    plans = [[[examples[0]], [examples[1]], [examples[2]]], [[examples[3], examples[4]]], [], [[examples[5]]] * 5]
    together = train_rows(tiny64, start(tiny64, 4), plans, replace_tokens(FAST, 150))
    for row, plan in enumerate(plans):
        alone = train_rows(tiny64, start(tiny64, 1), [plan], FAST)
        torch.testing.assert_close(together.values[row], alone.values[0], rtol=1e-6, atol=1e-8)
    assert torch.equal(together.values[2], start(tiny64, 1)[0]), "a row without examples does not move"
    assert math.isnan(together.losses[2])
    assert not any(together.failed)


def replace_tokens(config: AdamWConfig, tokens: int) -> AdamWConfig:
    return config.model_copy(update={"batch_tokens": tokens})


def test_a_row_that_is_not_finite_stays_and_does_not_touch_the_others(
    tiny: LanguageModel, passages: list[Passage]
) -> None:
    examples = [[passage_example(tiny, passage)] for passage in passages[:2]]
    broken = start(tiny, 2).clone()
    broken[1] = torch.nan
    found = train_rows(tiny, broken, [[examples[0]] * 2, [examples[1]] * 2], FAST)
    assert found.failed == [False, True]
    alone = train_rows(tiny, start(tiny, 1), [[examples[0]] * 2], FAST)
    torch.testing.assert_close(found.values[0], alone.values[0], rtol=1e-4, atol=1e-5)


def test_a_passages_adapter_does_not_depend_on_those_that_are_trained_beside_it(
    tiny: LanguageModel, world: World
) -> None:
    config = AdapterConfig(lr=1e-2, epochs=2)
    lm, items = tiny, augmented(world, 5)
    items[2] = replace(items[2], pairs=items[2].pairs[:1])
    together = AdapterTrainer(lm, config, rows=3).train(items)
    for item, adapter in zip(items, together, strict=True):
        alone = AdapterTrainer(lm, config).train([item])[0]
        assert adapter.values is not None and alone.values is not None
        torch.testing.assert_close(adapter.values, alone.values, rtol=1e-3, atol=1e-4)
        assert adapter.values.numel() == 2 * sum(i + o for _, i, o in lm.subspace.modules)


def test_adapters_can_be_trained_from_another_adapter(tiny: LanguageModel, world: World, tmp_path: Path) -> None:
    config = AdapterConfig(lr=1e-9)
    lm, items = tiny, augmented(world, 2)
    subspace = AdapterTrainer(lm, config).subspace
    start_P = torch.randn(subspace.size, generator=torch.Generator().manual_seed(7)) * 0.1
    folder = tmp_path / "base_weight"
    folder.mkdir()
    save_adapter(folder, "base", subspace, start_P)
    trainer = AdapterTrainer(lm, config, start_from=str(folder))
    for adapter in trainer.train(items):
        assert adapter.values is not None
        torch.testing.assert_close(adapter.values, start_P, rtol=1e-4, atol=1e-6)
    assert trainer.start_digest != AdapterTrainer(lm, config).start_digest
    other = AdapterConfig(rank=3)
    with refused(BankError, "other_adapter", differs="rank or scaling"):
        AdapterTrainer(tiny, other, start_from=str(folder))
    with refused(BankError, "no_adapters", uri=str(tmp_path)):
        AdapterTrainer(lm, config, start_from=str(tmp_path))


def test_an_adapter_is_trained_at_its_own_scale_on_top_of_a_static_one(tiny: LanguageModel, world: World) -> None:
    """Its loss falls when both are applied, and the static one alone is what it started from."""
    from regrad.training.lora.examples import example_batch
    from regrad.training.lora.lora_artifact import join

    config = AdapterConfig(lr=5e-3, epochs=4)
    values = 0.3 * torch.randn(tiny.subspace.size, generator=torch.Generator().manual_seed(3))
    static = StaticLora(tiny.config, tiny.identity(), tiny.subspace, values)
    lm, items = tiny, augmented(world, 1)
    trainer = AdapterTrainer(lm, config, static)
    adapter = trainer.train(items)[0].values
    assert adapter is not None
    batch = example_batch(lm, adapter_examples(lm, items[0], AdapterConfig()))

    def loss(*parts: tuple[Any, Tensor]) -> float:
        with torch.no_grad(), lm.applied(join(parts)):
            return float(sequence_losses(lm, batch).mean())

    both = loss((static.subspace, values), (trainer.subspace, adapter))
    assert both < loss((static.subspace, values)) - 0.1
    assert both < loss((trainer.subspace, adapter))


def test_a_passage_without_questions_has_no_adapter_and_stops_nothing(tiny: LanguageModel, world: World) -> None:
    config = AdapterConfig(max_tokens=120)
    lm, items = tiny, augmented(world, 3)
    items[0] = replace(items[0], pairs=())
    long = Passage("long", "Long", "word " * 200)
    items[1] = Augmented(long, (), (Pair("Who?", "me"),))
    found = AdapterTrainer(lm, config).train(items)
    assert [adapter.problem for adapter in found] == ["no question-answer pairs", "every sequence is too long", ""]
    assert found[2].values is not None


def adapted(
    lm: LanguageModel, phi0: Tensor, questions: list[list[Passage]], steps: int = 3, **changes: Any
) -> list[Adapted]:
    config = TtaConfig(name="tta", steps=steps, lr=1e-2, weight_decay=0.1, clip=0.5, **changes)
    return adapt_online(lm, lm.subspace, phi0, questions, config)


def test_online_adaptation_forgets_everything_between_questions(tiny: LanguageModel, passages: list[Passage]) -> None:
    """The bug of a published implementation: its reset was to tensors that had been trained meanwhile."""
    phi0, identity = start(tiny, 1)[0], tiny.identity()
    first = adapted(tiny, phi0, [passages[:2]])[0].update
    for questions in ([passages[2:5]], [passages[5:8], passages[:1]]):
        adapted(tiny, phi0, questions)
    again = adapted(tiny, phi0, [passages[:2]])[0].update
    beside = adapted(tiny, phi0, [passages[4:7], passages[:2]])[1].update
    assert first is not None and again is not None and beside is not None
    assert torch.equal(first, again)
    torch.testing.assert_close(first, beside, rtol=1e-3, atol=1e-4)
    assert (first - phi0).norm() > 0.1
    assert torch.equal(phi0, start(tiny, 1)[0])
    assert tiny.identity() == identity


@pytest.mark.parametrize("adapt_on", ["passages", "suffixes"])
def test_more_steps_lower_the_loss_of_the_passages(tiny: LanguageModel, passages: list[Passage], adapt_on: str) -> None:
    from regrad.training.lora.examples import example_batch

    batch = example_batch(tiny, [passage_example(tiny, passage) for passage in passages[:2]])
    losses = []
    for steps in (1, 6):
        update = adapted(tiny, start(tiny, 1)[0], [passages[:2]], steps, adapt_on=adapt_on)[0].update
        assert update is not None
        with torch.no_grad(), tiny.lora.applied(update):
            losses.append(float(sequence_losses(tiny, batch).mean()))
    assert losses[1] < losses[0]


def test_a_question_whose_passages_do_not_fit_is_answered_by_the_base_and_says_so(
    tiny: LanguageModel, passages: list[Passage]
) -> None:
    long = Passage("long", "Long", "word " * 400)
    found = adapted(tiny, start(tiny, 1)[0], [[long], [long, passages[0]], []], 1)
    assert [item.update is None for item in found] == [True, False, True]
    assert found[1].note == "1 passages do not fit the model"
    cut = adapted(tiny, start(tiny, 1)[0], [[long]], 1, max_tokens=50)[0]
    assert cut.update is not None and not cut.note


def test_ttarag_takes_its_first_three_pairs_in_two_steps_as_its_code_does(
    tiny64: LanguageModel, passages: list[Passage]
) -> None:
    """Written out: the sum of two losses over six, clipped; then the third over six. The second question has two."""
    from regrad.training.lora.examples import example_batch

    config = TtaragConfig(name="ttarag", lr=1e-2)
    questions = [passages[:5], passages[5:7]]
    found = adapt_online(tiny64, tiny64.subspace, start(tiny64, 1)[0], questions, config)
    for item, given in zip(found, questions, strict=True):
        examples = [suffix_example(tiny64, passage) for passage in given[:3]]
        phi = start(tiny64, 1)[0].clone().requires_grad_()
        optimizer = torch.optim.AdamW([phi], lr=1e-2, weight_decay=0.01)
        for some in (examples[:2], examples[2:]):
            if some:
                optimizer.zero_grad()
                with tiny64.lora.applied(phi):
                    loss = sequence_losses(tiny64, example_batch(tiny64, some)).sum() / (len(examples) * 2)
                loss.backward()
                torch.nn.utils.clip_grad_norm_([phi], 0.1)
                optimizer.step()
        assert item.update is not None
        torch.testing.assert_close(item.update, phi.detach().float(), rtol=1e-5, atol=1e-7)
