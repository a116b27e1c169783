"""The exact meta-gradient against naive autograd in float64: one passage and one question at a time, merged weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from regrad.atoms.gradients import encode_passage
from regrad.corpus import Passage
from regrad.language_model.loading import LanguageModel
from regrad.meta.objective import meta_gradient
from regrad.meta.tasks import MetaTask, TaskQuestion, collate
from tests.unit.test_lora import merged_weights


def naive_loss(lm: LanguageModel, phi: Tensor, alpha: Tensor, tasks: list[MetaTask], reduction: str) -> Tensor:
    """The objective written down as in the paper, with no batching at all."""
    losses = []
    for task in tasks:
        for question in task.questions:
            adapted = phi
            for position in question.context:
                ids = torch.tensor([encode_passage(lm, task.passages[position])])
                inner = token_loss(lm, phi, ids, 1, reduction)
                (gradient,) = torch.autograd.grad(inner, phi, create_graph=True)
                adapted = adapted - lm.subspace.per_tensor(alpha) * gradient
            losses.append(answer_loss(lm, adapted, question))
    return torch.stack(losses).mean()


def answer_loss(lm: LanguageModel, adapted: Tensor, question: TaskQuestion) -> Tensor:
    prompts = lm.config.prompts
    prompt = lm.bos + lm.encode(prompts.prompt(question.question))
    ids = torch.tensor([prompt + lm.encode(prompts.answer_text(question.answer)) + lm.eos])
    return token_loss(lm, adapted, ids, len(prompt), "mean")


def token_loss(lm: LanguageModel, phi: Tensor, ids: Tensor, start: int, reduction: str) -> Tensor:
    """Cross-entropy of the tokens from `start` on, with the update merged into the weights."""
    logits = functional_call(lm.model, merged_weights(lm, phi), kwargs={"input_ids": ids}).logits[0]
    return F.cross_entropy(logits[start - 1 : -1], ids[0, start:], reduction=reduction)


def make_tasks(passages: list[Passage], uneven: bool) -> list[MetaTask]:
    first = [TaskQuestion("Where was A born?", "Thomville", (0, 1)), TaskQuestion("Who employs A?", "Rasoft", (0, 1))]
    second = [TaskQuestion("What does B enjoy?", "chess", (1, 2, 0)), TaskQuestion("Where?", "Niworks", (1, 2, 0))]
    extra = [TaskQuestion("Who employs C?", "a teacher", (0,))] if uneven else []
    return [MetaTask(tuple(passages[:2]), tuple(first)), MetaTask(tuple(passages[1:4]), tuple(second + extra))]


@pytest.mark.parametrize("uneven", [False, True], ids=["even groups", "uneven groups"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_meta_gradient_equals_naive_autograd(
    tiny64: LanguageModel, passages: list[Passage], reduction: str, uneven: bool
) -> None:
    lm = tiny64
    generator = torch.Generator().manual_seed(7)
    phi = (0.1 * torch.randn(lm.subspace.size, generator=generator, dtype=torch.float64)).requires_grad_()
    alpha = (torch.rand(len(lm.subspace.shapes), generator=generator, dtype=torch.float64) + 0.1).requires_grad_()
    tasks = make_tasks(passages, uneven)
    loss = naive_loss(lm, phi, alpha, tasks, reduction)
    expected_phi, expected_alpha = torch.autograd.grad(loss, (phi, alpha))
    found = meta_gradient(lm, phi, alpha, collate(lm, tasks), reduction)
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-8, atol=1e-10)
    assert (found.phi0 - expected_phi).norm() / expected_phi.norm() < 1e-8
    assert (found.step_sizes - expected_alpha).norm() / expected_alpha.norm() < 1e-8


def test_the_second_order_term_matters(tiny64: LanguageModel, passages: list[Passage]) -> None:
    """Otherwise the comparison above could not tell the exact gradient from a first-order one."""
    lm = tiny64
    phi = 0.1 * torch.randn(lm.subspace.size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    alpha = torch.full((len(lm.subspace.shapes),), 0.5, dtype=torch.float64)
    batch = collate(lm, make_tasks(passages, uneven=False))
    exact = meta_gradient(lm, phi, alpha, batch).phi0
    tiny_alpha = meta_gradient(lm, phi, alpha * 1e-9, batch).phi0
    assert (exact - tiny_alpha).norm() / exact.norm() > 1e-3


def test_passages_shared_by_questions_are_differentiated_once(tiny64: LanguageModel, passages: list[Passage]) -> None:
    batch = collate(tiny64, make_tasks(passages, uneven=True))
    assert batch.passages.ids.shape[0] == 4
    assert batch.membership.sum(1).tolist() == [2.0, 3.0, 1.0]
    assert batch.questions_per_update is None


def test_a_model_with_fused_attention_can_be_meta_trained(tiny: LanguageModel, passages: list[Passage]) -> None:
    phi = 0.1 * torch.randn(tiny.subspace.size, generator=torch.Generator().manual_seed(7))
    alpha = torch.full((len(tiny.subspace.shapes),), 0.5)
    batch = collate(tiny, make_tasks(passages, uneven=False))
    eager = meta_gradient(tiny, phi, alpha, batch)
    tiny.model.set_attn_implementation("sdpa")
    fused = meta_gradient(tiny, phi, alpha, batch)
    assert (fused.phi0 - eager.phi0).norm() / eager.phi0.norm() < 1e-4
