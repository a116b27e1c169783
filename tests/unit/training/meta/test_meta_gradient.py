"""Every strategy against naive autograd: one passage and one question at a time, merged weights, no batching."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion
from regrad.gradients.extractor import encode_passage
from regrad.models.loading import LanguageModel
from regrad.training.meta.auto_strategy import choose_strategy, estimate_memory, saved_bytes
from regrad.training.meta.collate import MetaBatch, collate
from regrad.training.meta.config import InnerConfig, StrategyConfig
from regrad.training.meta.objective import Point
from regrad.training.meta.strategies import Difference, Graph, make_strategy
from tests.unit.models.test_lora import merged_weights


def naive_loss(
    lm: LanguageModel, phi: Tensor, alpha: Tensor, tasks: list[Task], reduction: str, steps: int = 1
) -> Tensor:
    """The objective written down as in the paper, with no batching at all."""
    means = []
    for task in tasks:
        losses = []
        for question in task.questions:
            adapted = phi
            for _ in range(steps):
                gradients = [passage_gradient(lm, adapted, task.passages[p], reduction) for p in question.context]
                adapted = adapted - lm.subspace.per_tensor(alpha) * torch.stack(gradients).sum(0)
            losses.append(answer_loss(lm, adapted, question))
        means.append(torch.stack(losses).mean())
    return torch.stack(means).mean()


def passage_gradient(lm: LanguageModel, phi: Tensor, passage: Passage, reduction: str) -> Tensor:
    ids = torch.tensor([encode_passage(lm, passage)])
    (gradient,) = torch.autograd.grad(token_loss(lm, phi, ids, 1, reduction), phi, create_graph=True)
    return gradient


def answer_loss(lm: LanguageModel, adapted: Tensor, question: TaskQuestion) -> Tensor:
    prompts = lm.config.prompts
    prompt = lm.bos + lm.encode(prompts.prompt(question.question))
    ids = torch.tensor([prompt + lm.encode(prompts.answer_text(question.answer)) + lm.eos])
    return token_loss(lm, adapted, ids, len(prompt), "mean")


def token_loss(lm: LanguageModel, phi: Tensor, ids: Tensor, start: int, reduction: str) -> Tensor:
    """Cross-entropy of the tokens from `start` on, with the update merged into the weights."""
    logits = functional_call(lm.model, merged_weights(lm, phi), kwargs={"input_ids": ids}).logits[0]
    return F.cross_entropy(logits[start - 1 : -1], ids[0, start:], reduction=reduction)


def make_tasks(passages: list[Passage], uneven: bool) -> list[Task]:
    first = [TaskQuestion("Where was A born?", "Thomville", (0, 1)), TaskQuestion("Who employs A?", "Rasoft", (0, 1))]
    second = [TaskQuestion("What does B enjoy?", "chess", (1, 2, 0)), TaskQuestion("Where?", "Niworks", (1, 2, 0))]
    extra = [TaskQuestion("Who employs C?", "a teacher", (0,))] if uneven else []
    return [Task(tuple(passages[:2]), tuple(first)), Task(tuple(passages[1:4]), tuple(second + extra))]


EXACT = ["graph", "hvp"]


def start(lm: LanguageModel, step_size: float = 0.5) -> tuple[Tensor, Tensor]:
    """phi0 [P] and one step size a tensor, in the model's precision, nothing zero."""
    dtype = lm.compute_dtype
    generator = torch.Generator().manual_seed(7)
    phi = 0.1 * torch.randn(lm.subspace.size, generator=generator, dtype=torch.float64)
    alpha = step_size * (0.5 + torch.rand(len(lm.subspace.shapes), generator=generator, dtype=torch.float64))
    return phi.to(dtype), alpha.to(dtype)


def naive(
    lm: LanguageModel, tasks: list[Task], reduction: str = "mean", steps: int = 1, step_size: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, dL/dphi0 [P] and dL/dalpha [n_tensors] by autograd through everything."""
    phi, alpha = (value.requires_grad_() for value in start(lm, step_size))
    loss = naive_loss(lm, phi, alpha, tasks, reduction, steps)
    phi_gradient, alpha_gradient = torch.autograd.grad(loss, (phi, alpha))
    return loss.detach(), phi_gradient, alpha_gradient


def at(lm: LanguageModel, step_size: float = 0.5) -> Point:
    phi, alpha = start(lm, step_size)
    return Point(phi, lm.subspace.per_tensor(alpha))


def per_tensor_sums(lm: LanguageModel, values_P: Tensor) -> Tensor:
    return torch.stack([part.sum() for part in values_P.split(lm.subspace.lengths)])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("uneven", [False, True], ids=["even groups", "uneven groups"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_exact_strategies_equal_naive_autograd_to_1e_8_in_float64(
    tiny64: LanguageModel, passages: list[Passage], reduction: str, uneven: bool, name: str
) -> None:
    lm, tasks = tiny64, make_tasks(passages, uneven)
    loss, phi_gradient, alpha_gradient = naive(lm, tasks, reduction)
    strategy = make_strategy(StrategyConfig(name=name, chunk_tokens=64), InnerConfig(reduction=reduction))
    found = strategy(lm, at(lm), collate(lm, tasks))
    torch.testing.assert_close(found.loss, loss, rtol=1e-8, atol=1e-10)
    assert relative(found.phi0, phi_gradient) < 1e-8
    assert relative(per_tensor_sums(lm, found.alpha), alpha_gradient) < 1e-8


@pytest.mark.parametrize("name", [*EXACT, "difference"])
def test_every_strategy_equals_naive_autograd_to_1e_5_in_float32(
    tiny: LanguageModel, passages: list[Passage], name: str
) -> None:
    """At a step size where the second-order term is a few per cent of the whole, as in the paper's settings."""
    tasks = make_tasks(passages, uneven=True)
    _, phi_gradient, alpha_gradient = naive(tiny, tasks, step_size=0.01)
    strategy = make_strategy(StrategyConfig(name=name, chunk_tokens=64), InnerConfig())
    found = strategy(tiny, at(tiny, 0.01), collate(tiny, tasks))
    assert relative(found.phi0, phi_gradient) < 1e-5
    assert relative(per_tensor_sums(tiny, found.alpha), alpha_gradient) < 1e-5


def test_differences_in_float64_are_far_more_exact(tiny64: LanguageModel, passages: list[Passage]) -> None:
    tasks = make_tasks(passages, uneven=True)
    _, phi_gradient, _ = naive(tiny64, tasks)
    found = Difference()(tiny64, at(tiny64), collate(tiny64, tasks))
    assert relative(found.phi0, phi_gradient) < 1e-7


def test_the_error_of_differences_is_estimated(tiny: LanguageModel, passages: list[Passage]) -> None:
    """Within a factor of five, for a step that is far too long, where truncation dominates."""
    batch = collate(tiny, make_tasks(passages, uneven=True))
    expected = Graph()(tiny, at(tiny), batch)
    for step in (0.05, 0.1):
        found = Difference(relative_step=step)(tiny, at(tiny), batch)
        actual = relative(found.phi0, expected.phi0)
        assert found.error is not None
        assert actual / 5 < found.error < actual * 5
    assert expected.error is None


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 3])
def test_several_inner_steps_equal_naive_autograd(tiny64: LanguageModel, passages: list[Passage], steps: int) -> None:
    tasks = make_tasks(passages, uneven=True)
    loss, phi_gradient, alpha_gradient = naive(tiny64, tasks, steps=steps)
    found = make_strategy(StrategyConfig(name="graph"), InnerConfig(steps=steps))(
        tiny64, at(tiny64), collate(tiny64, tasks)
    )
    torch.testing.assert_close(found.loss, loss, rtol=1e-8, atol=1e-10)
    assert relative(found.phi0, phi_gradient) < 1e-8
    assert relative(per_tensor_sums(tiny64, found.alpha), alpha_gradient) < 1e-8


def test_first_order_leaves_the_second_order_out_and_keeps_the_step_sizes_exact(
    tiny64: LanguageModel, passages: list[Passage]
) -> None:
    tasks = make_tasks(passages, uneven=False)
    _, phi_gradient, alpha_gradient = naive(tiny64, tasks)
    found = make_strategy(StrategyConfig(name="first-order"), InnerConfig())(tiny64, at(tiny64), collate(tiny64, tasks))
    assert relative(found.phi0, phi_gradient) > 1e-3
    assert relative(per_tensor_sums(tiny64, found.alpha), alpha_gradient) < 1e-8


@pytest.mark.parametrize("name", ["graph", "hvp", "difference", "first-order"])
def test_the_size_of_chunks_changes_nothing(tiny64: LanguageModel, passages: list[Passage], name: str) -> None:
    batch = collate(tiny64, make_tasks(passages, uneven=True))
    small, large = (
        make_strategy(StrategyConfig(name=name, chunk_tokens=tokens), InnerConfig())(tiny64, at(tiny64), batch)
        for tokens in (1, 10**6)
    )
    assert relative(small.phi0, large.phi0) < 1e-8
    torch.testing.assert_close(small.loss, large.loss, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["difference", "first-order"])
def test_recomputing_activations_changes_nothing(tiny64: LanguageModel, passages: list[Passage], name: str) -> None:
    batch = collate(tiny64, make_tasks(passages, uneven=True))
    kept, recomputed = (
        make_strategy(StrategyConfig(name=name, activation_checkpointing=active), InnerConfig())(
            tiny64, at(tiny64), batch
        )
        for active in (False, True)
    )
    assert relative(recomputed.phi0, kept.phi0) < 1e-9
    assert not any("forward" in vars(block) for block in tiny64.blocks.upper), "the blocks are as they were"


def test_passages_shared_by_questions_are_differentiated_once(tiny64: LanguageModel, passages: list[Passage]) -> None:
    batch = collate(tiny64, make_tasks(passages, uneven=True))
    assert batch.passages.ids.shape[0] == 4
    assert batch.membership.sum(1).tolist() == [2.0, 2.0, 3.0, 3.0, 1.0]
    assert batch.questions_per_update == 1
    assert batch.weights.sum() == pytest.approx(1.0)


def test_questions_on_the_same_passages_share_an_update_as_far_as_equal_groups_allow(
    tiny: LanguageModel, passages: list[Passage]
) -> None:
    even = collate(tiny, make_tasks(passages, uneven=False))
    assert (even.membership.shape[0], even.questions_per_update) == (2, 2)
    twice = collate(tiny, [*make_tasks(passages, uneven=False), make_tasks(passages, uneven=False)[0]])
    assert (twice.membership.shape[0], twice.questions_per_update) == (3, 2), "one of them has four questions"


@pytest.mark.parametrize("name", ["graph", "hvp", "difference"])
def test_a_model_with_fused_attention_can_be_meta_trained(
    tiny: LanguageModel, passages: list[Passage], name: str
) -> None:
    batch = collate(tiny, make_tasks(passages, uneven=False))
    strategy = make_strategy(StrategyConfig(name=name), InnerConfig())
    eager = strategy(tiny, at(tiny), batch)
    tiny.model.set_attn_implementation("sdpa")
    assert relative(strategy(tiny, at(tiny), batch).phi0, eager.phi0) < 1e-3


def one_question(lm: LanguageModel, passages: list[Passage], count: int) -> MetaBatch:
    question = TaskQuestion("Where was A born?", "Thomville", tuple(range(count)))
    return collate(lm, [Task(tuple(passages[:count]), (question,))])


def test_memory_of_hvp_and_difference_does_not_grow_with_passages_and_that_of_graph_does(
    tiny: LanguageModel, passages: list[Passage]
) -> None:
    """Bytes that autograd keeps at once are what a chunk needs: counted by the hooks that `auto` uses."""
    grown = {}
    for name in ("graph", "hvp", "difference"):
        strategy = make_strategy(StrategyConfig(name=name, chunk_tokens=64), InnerConfig())
        peaks = [peak_saved(tiny, strategy, one_question(tiny, passages, k)) for k in (2, 10)]
        grown[name] = peaks[1] / peaks[0]
    assert grown["graph"] > 3
    assert grown["hvp"] < 1.3
    assert grown["difference"] < 1.3


def peak_saved(lm: LanguageModel, strategy: object, batch: MetaBatch) -> int:
    """The most bytes of tensors saved for backward passes that are alive at once."""
    import weakref

    now = peak = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def release(size: int) -> None:
        nonlocal now
        now -= size

    def pack(tensor: Tensor) -> Kept:
        nonlocal now, peak
        kept = Kept(tensor)
        size = tensor.numel() * tensor.element_size()
        now += size
        peak = max(peak, now)
        weakref.finalize(kept, release, size)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        strategy(lm, at(lm), batch)  # type: ignore[operator]
    return peak


def test_auto_takes_the_fastest_strategy_that_fits_and_says_why(tiny: LanguageModel, passages: list[Passage]) -> None:
    batch = one_question(tiny, passages, 10)
    need = estimate_memory(tiny, at(tiny), batch, chunk_tokens=64)
    assert need.graph > need.hvp > need.difference
    for name, gigabytes in (("graph", need.graph * 1.01), ("hvp", need.hvp * 1.01), ("difference", need.difference)):
        config = StrategyConfig(memory_gb=gigabytes / 1e9, chunk_tokens=64)
        strategy, said = choose_strategy(tiny, at(tiny), batch, config, InnerConfig())
        assert strategy.name == name
        assert said.startswith(f"strategy {name}: estimated GB graph")
    sharded, said = choose_strategy(tiny, at(tiny), batch, StrategyConfig(), InnerConfig(), layer_wise=True)
    assert sharded.name == "difference"
    several, _ = choose_strategy(tiny, at(tiny), batch, StrategyConfig(), InnerConfig(steps=2))
    assert several.name == "graph"


def test_the_estimate_of_saved_bytes_leaves_the_weights_out(tiny: LanguageModel) -> None:
    weight = next(tiny.model.parameters())
    leaf = torch.ones(3, requires_grad=True)
    assert saved_bytes(tiny, lambda: leaf * leaf) == 12
    assert saved_bytes(tiny, lambda: (leaf.sum() * weight).sum()) <= 8
