"""The losses of tokens from a few tokens' logits at a time, beside those of autograd over all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regrad.models import token_losses as module
from regrad.models.loading import LanguageModel
from regrad.models.token_losses import token_losses, token_losses_and_grads
from tests.tools.random_models import loaded, random_model

TOKENS = 37


def by_autograd(lm: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(lm.logits(hidden), targets, reduction="none")


def inputs(lm: LanguageModel) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [M, D], targets [M], and a weight for each loss [M]."""
    generator = torch.Generator().manual_seed(5)
    width = lm.model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    hidden = torch.randn(TOKENS, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, lm.vocabulary_size, (TOKENS,), generator=generator)
    return hidden, targets, torch.rand(TOKENS, generator=generator, dtype=torch.float64)


@pytest.fixture(params=["llama", "granite", "cohere", "gemma2", "phi"])
def lm(request: pytest.FixtureRequest, tiny: LanguageModel, tmp_path: Path) -> LanguageModel:
    """Logits as they are, divided, multiplied, soft-capped, and with a constant added; in float64."""
    settings = {"logits_scaling": 3.0} if request.param == "granite" else {}
    lm = loaded(random_model(request.param, **settings), tiny, tmp_path)
    lm.model.double()
    head = lm.model.get_output_embeddings()  # type: ignore[operator]
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return lm


@pytest.mark.parametrize("at_once", [1, 10**9])
def test_losses_and_both_derivatives_are_those_of_autograd(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setitem(module._AT_ONCE, "cpu", at_once)
    hidden, targets, weights = inputs(lm)
    found = []
    for losses in (token_losses, by_autograd):
        leaf, scale = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
        each = losses(lm, leaf, targets)
        (gradient,) = torch.autograd.grad((each * scale).sum(), leaf, create_graph=True)
        second = torch.autograd.grad(gradient.pow(2).sum() + each.sum(), (leaf, scale))
        found.append([each.detach(), gradient.detach(), *second])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def test_losses_with_gradients_and_without_a_graph(lm: LanguageModel) -> None:
    hidden, targets, _ = inputs(lm)
    leaf = hidden.clone().requires_grad_()
    expected = by_autograd(lm, leaf, targets)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    losses, grads = token_losses_and_grads(lm, hidden, targets)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(grads, gradient, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(token_losses(lm, hidden, targets), expected.detach(), rtol=1e-9, atol=1e-11)


def test_no_tokens_have_no_losses(lm: LanguageModel) -> None:
    hidden, targets, _ = (part[:0] for part in inputs(lm))
    losses, grads = token_losses_and_grads(lm, hidden, targets)
    assert losses.shape == (0,) and grads.shape == hidden.shape
    assert token_losses(lm, hidden.requires_grad_(), targets).shape == (0,)


def test_weights_that_are_trained_get_their_gradient(tiny: LanguageModel) -> None:
    weight = tiny.model.get_output_embeddings().weight.requires_grad_()  # type: ignore[operator]
    hidden, targets, _ = inputs(tiny)
    token_losses(tiny, hidden.float(), targets).sum().backward()
    assert weight.grad is not None


def test_the_logits_of_all_tokens_never_exist_at_once(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._AT_ONCE, "cpu", 1)
    hidden, targets, _ = inputs(tiny)
    seen = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda *args: seen.append(len(args[0])) or linear(*args))
    leaf = hidden.float().requires_grad_()
    (gradient,) = torch.autograd.grad(token_losses(tiny, leaf, targets).sum(), leaf, create_graph=True)
    torch.autograd.grad(gradient.sum(), leaf)
    assert max(seen) == 16 and sum(seen) == 3 * TOKENS
