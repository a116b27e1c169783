"""`inner.acts_on: answer`: the base model alone reads a question's prompt, in training as in its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from transformers import DynamicCache

from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion
from regrad.errors import TrainingError
from regrad.lab.config import LabConfig
from regrad.lab.files import lab_tasks
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import collate
from regrad.training.meta.config import InnerConfig, MetaTrainConfig, StrategyConfig, StrategyName
from regrad.training.meta.objective import adapt, outer_gradient, question_loss
from regrad.training.meta.reading import means, reading_sums
from regrad.training.meta.strategies import make_strategy
from regrad.training.meta.trainer import meta_train_in_process, score_tasks
from tests.tools.decoded import recomputed
from tests.tools.refusals import refused
from tests.unit.models.test_lora import merged_weights
from tests.unit.training.meta import test_meta_gradient as everything
from tests.unit.training.meta.test_meta_gradient import at, make_tasks, per_tensor_sums, relative, start
from tests.unit.training.test_in_process import meta_settings as meta_settings

ANSWER = InnerConfig(acts_on="answer")


def answer_loss(lm: LanguageModel, adapted: Tensor, question: TaskQuestion) -> Tensor:
    """The prompt but its last token by the base model, and the rest, after its keys and values, by merged weights."""
    prompts, cache = lm.config.prompts, DynamicCache()
    prompt = lm.bos + lm.encode(prompts.prompt(question.question))
    answer = lm.encode(prompts.answer_text(question.answer)) + lm.eos
    lm.model(input_ids=torch.tensor([prompt[:-1]]), past_key_values=cache, use_cache=True)
    rest = {"input_ids": torch.tensor([[prompt[-1], *answer[:-1]]]), "past_key_values": cache, "use_cache": True}
    logits = functional_call(lm.model, merged_weights(lm, adapted), kwargs=rest).logits[0]
    return F.cross_entropy(logits, torch.tensor(answer))


def naive(
    lm: LanguageModel, tasks: list[Task], monkeypatch: pytest.MonkeyPatch, steps: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients by autograd through everything, one passage and one question at a time."""
    monkeypatch.setattr(everything, "answer_loss", answer_loss)
    return everything.naive(lm, tasks, steps=steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "tolerance"), [("graph", 1, 1e-8), ("graph", 2, 1e-8), ("hvp", 1, 1e-8), ("difference", 1, 1e-6)]
)
@pytest.mark.parametrize("uneven", [False, True], ids=["even groups", "uneven groups"])
def test_strategies_equal_naive_autograd_in_float64(
    tiny64: LanguageModel,
    passages: list[Passage],
    monkeypatch: pytest.MonkeyPatch,
    name: StrategyName,
    steps: int,
    tolerance: float,
    uneven: bool,
) -> None:
    tasks = make_tasks(passages, uneven)
    loss, phi_gradient, alpha_gradient = naive(tiny64, tasks, monkeypatch, steps)
    inner = ANSWER.model_copy(update={"steps": steps})
    strategy = make_strategy(StrategyConfig(name=name, chunk_tokens=64), inner)
    found = strategy(tiny64, at(tiny64), collate(tiny64, tasks))
    torch.testing.assert_close(found.loss, loss, rtol=1e-8, atol=1e-10)
    assert relative(found.phi0, phi_gradient) < tolerance
    assert relative(per_tensor_sums(tiny64, found.alpha), alpha_gradient) < 1e-8


def test_first_order_leaves_the_second_order_out_and_keeps_the_step_sizes_exact(
    tiny64: LanguageModel, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = make_tasks(passages, uneven=False)
    _, phi_gradient, alpha_gradient = naive(tiny64, tasks, monkeypatch)
    found = make_strategy(StrategyConfig(name="first-order"), ANSWER)(tiny64, at(tiny64), collate(tiny64, tasks))
    assert relative(found.phi0, phi_gradient) > 1e-3
    assert relative(per_tensor_sums(tiny64, found.alpha), alpha_gradient) < 1e-8


@pytest.mark.parametrize("name", ["difference", "first-order"])
def test_chunks_and_recomputed_activations_change_nothing(
    tiny64: LanguageModel, passages: list[Passage], name: StrategyName
) -> None:
    batch = collate(tiny64, make_tasks(passages, uneven=True))
    configs = [StrategyConfig(name=name, chunk_tokens=n, activation_checkpointing=c) for n, c in ((1, True), (999, 0))]
    small, large = (make_strategy(config, ANSWER)(tiny64, at(tiny64), batch) for config in configs)
    assert relative(small.phi0, large.phi0) < 1e-8
    torch.testing.assert_close(small.loss, large.loss, rtol=1e-10, atol=0)


def test_it_is_another_objective(tiny64: LanguageModel, passages: list[Passage]) -> None:
    batch = collate(tiny64, make_tasks(passages, uneven=True))
    updates, inner_losses = adapt(tiny64, at(tiny64), batch)
    losses = {acts_on: question_loss(tiny64, updates, batch, acts_on) for acts_on in ("everything", "answer")}
    assert abs(float(losses["answer"] - losses["everything"])) > 1e-3
    loss, gradient = outer_gradient(tiny64, updates, batch, 64, acts_on="answer")
    torch.testing.assert_close(loss, losses["answer"])
    assert gradient.norm() > 0
    # The inner step is the same: the passages' losses and gradients know nothing of it.
    found = make_strategy(StrategyConfig(name="graph"), ANSWER)(tiny64, at(tiny64), batch)
    torch.testing.assert_close(found.inner_loss, inner_losses.mean())


def test_lower_blocks_are_shared_as_ever(tiny64: LanguageModel, passages: list[Passage]) -> None:
    batch = collate(tiny64, make_tasks(passages, uneven=False))
    updates = start(tiny64)[0].expand(batch.membership.shape[0], -1)
    read = replace(batch.questions, entered=tiny64.blocks.enter(batch.questions.ids[:, :-1]))
    shared = question_loss(tiny64, updates, batch.with_tokens(batch.passages, read), "answer")
    torch.testing.assert_close(shared, question_loss(tiny64, updates, batch, "answer"), rtol=1e-12, atol=0)


def test_the_losses_of_reading_are_under_updates_that_act_on_the_answer(tiny: LanguageModel, world: World) -> None:
    tasks = [Task.from_record(r) for r in lab_tasks(world.meta[:30], LabConfig(people_per_record=3), 9, seed=3)]
    part = [replace(task, questions=task.questions[:1]) for task in tasks[::4]]
    found = means([reading_sums(tiny, at(tiny), part, ANSWER)])
    none = [answer_loss(tiny, at(tiny).phi0, task.questions[0]) for task in part]
    assert found["loss_none"] == pytest.approx(float(torch.stack(none).mean()), rel=1e-4)
    assert found != pytest.approx(means([reading_sums(tiny, at(tiny), part)]), rel=1e-4)


def test_dev_answers_are_written_under_updates_that_act_on_the_answer(
    tiny64: LanguageModel, passages: list[Passage]
) -> None:
    (task, _), point = make_tasks(passages, uneven=False), at(tiny64)
    updates, _ = adapt(tiny64, point, collate(tiny64, [task]))
    said = []
    for question in task.questions:
        prompt = tiny64.config.prompts.prompt(question.question)
        update = tiny64.subspace.updates(updates[0], "answer")
        said.append(recomputed(tiny64, prompt, update, 20, stop=tiny64.config.prompts.stop))
    assert all(said)
    right = replace(task, questions=tuple(replace(q, answer=a) for q, a in zip(task.questions, said, strict=True)))
    assert score_tasks(tiny64, point, [right], ANSWER).exact_match == 2
    assert score_tasks(tiny64, point, [right], InnerConfig()).exact_match < 2


@pytest.mark.slow
def test_a_run_writes_it_into_the_meta_init_and_goes_on_only_from_one_of_its_kind(
    meta_settings: Callable[..., MetaTrainConfig], tmp_path: Path
) -> None:
    made = meta_train_in_process(meta_settings("inner.acts_on=answer", "optimizer.steps=2"))
    other = meta_train_in_process(meta_settings("optimizer.steps=2"))
    assert (made.acts_on, other.acts_on) == ("answer", "everything")
    assert not torch.equal(made.phi0, other.phi0)
    made.save(tmp_path / "made")
    assert MetaInit.load(tmp_path / "made").acts_on == "answer"
    going_on = [f"start_from={tmp_path}/made", "optimizer.steps=1"]
    with refused(TrainingError, "start_from_acts_on", expected="answer"):
        meta_train_in_process(meta_settings(*going_on))
    child = meta_train_in_process(meta_settings(*going_on, "inner.acts_on=answer"))
    assert (child.acts_on, child.notes["parent"]) == ("answer", made.fingerprint)
