"""Many texts through an encoder or a cross-encoder, a part at a time: the same outputs and gradients, less memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from regrad.data.passages import Passage
from regrad.lab.config import LabEncoderConfig
from regrad.lab.encoder import write_encoder
from regrad.retrieval.config import EncoderConfig, RerankConfig
from regrad.retrieval.encoder import Encoder
from regrad.retrieval.reranked import CrossEncoder
from tests.tools.encoders import random_transformer
from tests.unit.retrieval.test_reranked import WORDS, save_cross_encoder

BATCH_TOKENS = 80
LONGEST = 22
"""Words of the longest text, of at most three tokens each: it fits into a part."""


@dataclass
class Subject:
    """A network, what differentiates its outputs, and the texts."""

    module: Any
    outputs: Callable[[int | None], Tensor]
    texts: int


@pytest.fixture(scope="module", params=["passages", "questions", "selector", "static"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("differentiable")
    draws = random.Random(0)
    texts = [" ".join(draws.choices(WORDS, k=draws.randint(1, LONGEST))) for _ in range(30)]
    texts[0], texts[7] = "fox", " ".join(WORDS[:2] * (LONGEST // 2))
    passages = [Passage(f"p{n}", "", text) for n, text in enumerate(texts)]
    if request.param == "selector":
        save_cross_encoder(folder)
        selector = CrossEncoder(RerankConfig(index="any", model=str(folder)), "cpu")
        selector.module.double()
        pairs = [("where is the fox", passage) for passage in passages]
        return Subject(selector.module, lambda tokens: selector.logits(pairs, tokens), len(texts))
    if request.param == "static":
        write_encoder(LabEncoderConfig(output=f"{folder}/encoder", dimensions=16))
    else:
        random_transformer(folder)
    encoder = Encoder(EncoderConfig(path=f"{folder}/encoder"), "cpu")
    encoder.module.double()
    if request.param == "questions":
        return Subject(encoder.module, lambda tokens: encoder.question_vectors(texts, tokens), len(texts))
    return Subject(encoder.module, lambda tokens: encoder.passage_vectors(passages, tokens), len(texts))


def gradients(subject: Subject, batch_tokens: int | None) -> tuple[Tensor, list[Tensor]]:
    """The outputs, and the gradients of a sum of them, each weighed otherwise."""
    subject.module.zero_grad()
    outputs = subject.outputs(batch_tokens)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    (outputs * weights).sum().backward()  # type: ignore[no-untyped-call]
    found = [p.grad for p in subject.module.parameters() if p.grad is not None]
    return outputs.detach(), found


@dataclass
class Passes:
    """The padded tokens of each pass, forward or again in the backward pass, and the most alive at a time.

    Alive are the outputs of linear layers and of norms, by bytes.
    """

    tokens: list[int] = field(default_factory=list)
    most_alive: int = 0
    _kept: list[tuple[StorageWeakRef, int]] = field(default_factory=list)

    def note(self, output: Tensor) -> None:
        storage = output.untyped_storage()
        self._kept = [(ref, size) for ref, size in self._kept if not ref.expired()]
        self._kept.append((StorageWeakRef(storage), storage.nbytes()))
        self.most_alive = max(self.most_alive, sum(size for _, size in self._kept))


@contextmanager
def observed(module: nn.Module) -> Iterator[Passes]:
    passes = Passes()

    def begins(_: nn.Module, args: Sequence[Any]) -> None:
        passes.tokens.append(args[0]["input_ids"].numel())

    def ends(_: nn.Module, args: Sequence[Any], output: Tensor) -> None:
        passes.note(output)

    handles = [module.register_forward_pre_hook(begins)]
    handles += [
        one.register_forward_hook(ends) for one in module.modules() if isinstance(one, nn.Linear | nn.LayerNorm)
    ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def test_gradients_of_many_parts_are_those_of_one(subject: Subject) -> None:
    expected, gradients_of_one = gradients(subject, None)
    assert gradients_of_one
    for batch_tokens in (BATCH_TOKENS, 1):
        found, gradients_of_many = gradients(subject, batch_tokens)
        # Outputs are float32, and gradients are computed in float64.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        for one, other in zip(gradients_of_many, gradients_of_one, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9 * float(other.abs().max()) + 1e-12)


def test_no_pass_has_more_tokens_and_each_is_run_twice(subject: Subject) -> None:
    with observed(subject.module) as passes:
        subject.outputs(BATCH_TOKENS)
    forward = len(passes.tokens)
    assert forward > 1 and max(passes.tokens) <= BATCH_TOKENS
    with observed(subject.module) as passes:
        gradients(subject, BATCH_TOKENS)
    assert len(passes.tokens) == 2 * forward and max(passes.tokens) <= BATCH_TOKENS
    with observed(subject.module) as passes, torch.no_grad():
        assert not subject.outputs(BATCH_TOKENS).requires_grad
    assert len(passes.tokens) == forward and max(passes.tokens) <= BATCH_TOKENS


def test_what_is_kept_for_the_backward_pass_is_that_of_one_part(subject: Subject) -> None:
    with observed(subject.module) as whole:
        gradients(subject, None)
    with observed(subject.module) as parts:
        gradients(subject, BATCH_TOKENS)
    # A token costs the same in both; a tenth is for what two passes overlap. A static embedding keeps nothing.
    assert parts.most_alive <= 1.1 * whole.most_alive * BATCH_TOKENS / whole.tokens[0]


def test_what_fits_is_one_pass_to_the_last_bit(subject: Subject) -> None:
    expected, gradients_of_one = gradients(subject, None)
    with observed(subject.module) as passes:
        found, again = gradients(subject, 10**6)
    assert len(passes.tokens) == 1
    assert torch.equal(found, expected)
    assert all(torch.equal(one, other) for one, other in zip(again, gradients_of_one, strict=True))
    # As many tokens as the pass has are not too many, and one fewer are.
    for batch_tokens, several in ((passes.tokens[0], False), (passes.tokens[0] - 1, True)):
        with observed(subject.module) as counted:
            subject.outputs(batch_tokens)
        assert (len(counted.tokens) > 1) is several


def test_a_text_that_is_longer_goes_alone(subject: Subject) -> None:
    with observed(subject.module) as passes:
        subject.outputs(1)
    assert len(passes.tokens) == subject.texts
