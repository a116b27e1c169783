"""Adapters that are kept orthogonal to a static LoRA: the constraint's mathematics, and what training makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from regrad.errors import TrainingError
from regrad.lab.world import World
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace, save_adapter
from regrad.settings import parse_settings
from regrad.training.lora.batched import AdapterTrainer, train_rows
from regrad.training.lora.config import AdapterConfig, AdaptersConfig
from regrad.training.lora.examples import adapter_examples
from regrad.training.lora.lora_artifact import StaticLora, join
from regrad.training.lora.orthogonal import NullSpace, soft_penalty
from tests.tools.adapting import static_lora
from tests.tools.augmenting import augmented
from tests.tools.refusals import refused, refused_settings

OWN = Subspace((("up", 9, 5), ("down", 5, 9), ("free", 7, 3)), rank=2, scaling=4.0)
TASK = Subspace((("down", 5, 9), ("up", 9, 5)), rank=3, scaling=1.0)


def random(size: int, seed: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def task_lora(lm: LanguageModel, subspace: Subspace = TASK, values: Tensor | None = None) -> StaticLora:
    return StaticLora(lm.config, lm.identity(), subspace, random(subspace.size, 1)[0] if values is None else values)


def overlap(own: Subspace, adapters: Tensor, static: StaticLora) -> float:
    """The largest number of A_D A_T^T over the projections that both have, over the norms of the rows of the two."""
    mine, task = own.unflatten(adapters.double()), static.subspace.unflatten(static.values.double())
    largest = 0.0
    for name in mine.keys() & task.keys():
        if name.endswith(".A"):
            cosines = (mine[name] / mine[name].norm(dim=-1, keepdim=True)) @ task[name].mT
            largest = max(largest, float((cosines / task[name].norm(dim=-1)).abs().max()))
    return largest


def test_the_penalty_is_the_published_trace_and_its_gradient_that_of_autograd_through_it(tiny: LanguageModel) -> None:
    static = task_lora(tiny)
    rows = random(OWN.size, 2, rows=4).requires_grad_()
    found = soft_penalty(OWN, static, 10.0)(rows)

    expected = []
    for row in rows:
        mine, task = OWN.unflatten(row), TASK.unflatten(static.values)
        pairs = [(task[f"{name}.A"], mine[f"{name}.A"]) for name in ("up", "down")]
        expected.append(10.0 * sum(torch.trace(t @ d.T @ d @ t.T) for t, d in pairs))
    torch.testing.assert_close(found, torch.stack(expected))
    (gradient,) = torch.autograd.grad(found.sum(), rows, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(torch.stack(expected).sum(), rows)[0])

    # In closed form, 2 w A_D A_T^T A_T for A of the two projections, and nothing for B and for what the task leaves.
    parts, mine, task = OWN.unflatten(gradient), OWN.unflatten(rows), TASK.unflatten(static.values)
    for name in ("up", "down"):
        t, d = task[f"{name}.A"], mine[f"{name}.A"]
        torch.testing.assert_close(parts[f"{name}.A"], 20.0 * d @ t.T @ t)
    assert not any(parts[name].any() for name in ("up.B", "down.B", "free.A", "free.B"))


def test_what_is_lifted_from_the_null_space_is_orthogonal_and_reaches_all_of_it(tiny: LanguageModel) -> None:
    static = task_lora(tiny)
    space = NullSpace(OWN, static)
    assert space.inner.modules == (("up", 6, 5), ("down", 2, 9), ("free", 7, 3))
    inner = random(space.inner.size, 3, rows=3)
    rows = space.lift(inner)
    assert overlap(OWN, rows, static) < 1e-14 and overlap(OWN, space.lift(inner.float()), static) < 1e-6
    # An isometry onto the null space: it loses nothing, and what is in the null space comes back from it.
    torch.testing.assert_close(rows.norm(dim=1), inner.norm(dim=1))
    torch.testing.assert_close(space.project(rows), inner)
    anything = random(OWN.size, 4)
    inside, task = OWN.unflatten(space.lift(space.project(anything))), TASK.unflatten(static.values)
    for name, value in OWN.unflatten(anything).items():
        if name in ("up.A", "down.A"):
            value = value - value @ torch.linalg.pinv(task[name]) @ task[name]
        torch.testing.assert_close(inside[name], value)


def test_the_gradient_of_what_is_lifted_is_the_projected_one(tiny: LanguageModel) -> None:
    space = NullSpace(OWN, task_lora(tiny))
    inner = random(space.inner.size, 3, rows=2).requires_grad_()
    upstream = random(OWN.size, 5, rows=2)
    (gradient,) = torch.autograd.grad(space.lift(inner), inner, upstream)
    torch.testing.assert_close(gradient, space.project(upstream))


def test_directions_that_the_static_lora_only_repeats_are_not_taken_twice(tiny: LanguageModel) -> None:
    tensors = TASK.unflatten(random(TASK.size, 1)[0].clone())
    tensors["up.A"][2] = tensors["up.A"][0] - 2 * tensors["up.A"][1]
    tensors["down.A"].zero_()
    static = task_lora(tiny, values=TASK.flatten(tensors))
    space = NullSpace(OWN, static)
    assert space.inner.modules == (("up", 7, 5), ("down", 5, 9), ("free", 7, 3))
    lifted = OWN.unflatten(space.lift(random(space.inner.size, 3)))
    assert (lifted["up.A"] @ tensors["up.A"].mT).abs().max() < 1e-13


def test_adapters_without_room_or_without_a_projection_in_common_are_refused(tiny: LanguageModel) -> None:
    narrow = Subspace(OWN.modules, rank=3, scaling=1.0)
    with refused(TrainingError, "null_space_too_small", projection="down", free=2, rank=3):
        NullSpace(narrow, task_lora(tiny))
    elsewhere = task_lora(tiny, Subspace((("other", 9, 5),), 1, 1.0))
    for make in (lambda: NullSpace(OWN, elsewhere), lambda: soft_penalty(OWN, elsewhere, 1.0)):
        with refused(TrainingError, "nothing_to_be_orthogonal_to", projections=3):
            make()


def trained(lm: LanguageModel, world: World, static: StaticLora, start: str | None = None, **changes: object) -> Tensor:
    config = AdapterConfig.model_validate({"lr": 1e-2, "epochs": 3, **changes})
    found = AdapterTrainer(lm, config, static, start_from=start).train(augmented(world, 3))
    return torch.stack([adapter.values for adapter in found if adapter.values is not None])


def test_hard_adapters_are_orthogonal_to_float_precision_and_learn(
    tiny: LanguageModel, world: World, tmp_path: Path
) -> None:
    static = static_lora(tiny, 2, tmp_path / "task")
    trainer = AdapterTrainer(tiny, AdapterConfig(), static)
    free = trained(tiny, world, static)
    hard = trained(tiny, world, static, hard_orthogonality=True)
    assert hard.shape == free.shape == (3, trainer.subspace.size)
    assert overlap(trainer.subspace, hard, static) < 1e-6 < 1e-2 < overlap(trainer.subspace, free, static)

    def loss(adapter: Tensor) -> float:
        from regrad.models.batching import sequence_losses
        from regrad.training.lora.examples import example_batch

        batch = example_batch(tiny, adapter_examples(tiny, augmented(world, 1)[0], AdapterConfig()))
        with torch.no_grad(), tiny.applied(join([(static.subspace, static.values), (trainer.subspace, adapter)])):
            return float(sequence_losses(tiny, batch).mean())

    assert loss(hard[0]) < loss(torch.zeros_like(hard[0])) - 0.1


def test_hard_adapters_start_from_the_orthogonal_part_of_the_adapter_that_is_given(
    tiny: LanguageModel, world: World, tmp_path: Path
) -> None:
    static = static_lora(tiny, 2, tmp_path / "task")
    subspace = AdapterTrainer(tiny, AdapterConfig(), static).subspace
    start_P = 0.1 * random(subspace.size, 7)[0].float()
    (tmp_path / "start").mkdir()
    save_adapter(tmp_path / "start", "base", subspace, start_P)
    still = trained(tiny, world, static, str(tmp_path / "start"), hard_orthogonality=True, lr=1e-9)
    space = NullSpace(subspace, static)
    torch.testing.assert_close(still[0], space.lift(space.project(start_P)), rtol=1e-4, atol=1e-6)


def test_a_soft_penalty_is_trained_as_part_of_the_loss(tiny64: LanguageModel, world: World) -> None:
    """Against one AdamW parameter and autograd through the whole loss, penalty included."""
    from regrad.models.batching import sequence_losses
    from regrad.training.lora.examples import example_batch

    lm, config = tiny64, AdapterConfig(lr=1e-2, weight_decay=0.01)
    static = task_lora(lm, lm.subspace, 0.1 * random(lm.subspace.size, 1)[0])
    penalty = soft_penalty(lm.subspace, static, 10.0)
    examples = adapter_examples(lm, augmented(world, 1)[0], config)[:3]
    start_P = lm.subspace.initial(0).double()
    found = train_rows(lm, start_P[None], [[[item] for item in examples]], config, penalty=penalty)

    phi = start_P.clone().requires_grad_()
    optimizer = torch.optim.AdamW([phi], lr=1e-2, weight_decay=0.01)
    for example in examples:
        with lm.lora.applied(phi):
            loss = sequence_losses(lm, example_batch(lm, [example])).mean() + penalty(phi)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(found.values[0], phi.detach(), rtol=1e-6, atol=1e-8)
    assert found.losses[0] == pytest.approx(loss.item())
    without = train_rows(lm, start_P[None], [[[item] for item in examples]], config)
    assert not torch.allclose(found.values, without.values, rtol=1e-3, atol=1e-3)


def test_soft_adapters_overlap_less_the_larger_the_weight(tiny: LanguageModel, world: World, tmp_path: Path) -> None:
    static = static_lora(tiny, 2, tmp_path / "task")
    subspace = AdapterTrainer(tiny, AdapterConfig(), static).subspace
    squares = soft_penalty(subspace, static, 1.0)
    sums = [float(squares(trained(tiny, world, static, soft_orthogonality=weight)).sum()) for weight in (0, 1, 100)]
    assert sums[2] < 0.8 * sums[1] < 0.5 * sums[0]


def test_settings_that_contradict_or_name_nothing_to_be_orthogonal_to_are_refused(tiny: LanguageModel) -> None:
    values = {"model": tiny.config.model_dump(), "corpus": "c", "bank": {"uri": "b"}}
    for constraint in ({"soft_orthogonality": 10.0}, {"hard_orthogonality": True}):
        with refused_settings("static_missing"):
            parse_settings(AdaptersConfig, {**values, "adapter": constraint}, "test")
        parse_settings(AdaptersConfig, {**values, "adapter": constraint, "static": "s"}, "test")
    both = {"soft_orthogonality": 10.0, "hard_orthogonality": True}
    with refused_settings("both_orthogonalities", "adapter"):
        parse_settings(AdaptersConfig, {**values, "adapter": both, "static": "s"}, "test")
