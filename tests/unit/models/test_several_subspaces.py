"""Updates in several subspaces on one model: each row gets what its own updates make of the weights, alone or beside
others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from regrad.errors import ModelError
from regrad.inference.decoding import GenerationRequest, generate
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel
from regrad.models.lora import BatchedLora
from regrad.models.subspace import Subspace, Update, find_subspace
from tests.tools.decoded import PROMPTS, Heard, alone, run, update
from tests.tools.refusals import refused

ATTENTION = {"layers": tuple(range(4)), "projections": ("q_proj", "k_proj", "v_proj")}


def subspaces(lm: LanguageModel) -> list[Subspace]:
    """ReGrad's (upper MLPs, the model's own), RAG-GD's (q, k, v everywhere) and PRAG's (all MLPs)."""
    attention = SubspaceConfig(rank=2, alpha=6, **ATTENTION)
    mlps = SubspaceConfig(rank=3, alpha=3, layers=tuple(range(4)))
    return [lm.subspace, find_subspace(lm.model, attention), find_subspace(lm.model, mlps)]


def combinations(lm: LanguageModel) -> list[tuple[Update, ...]]:
    """In none of the subspaces, in each, in two and in all three."""
    own, attention, mlps = (update(lm, seed, 0.2, subspace) for seed, subspace in enumerate(subspaces(lm)))
    return [(), own, attention, mlps, own + attention, mlps + own, attention + mlps + own]


@contextmanager
def merged(lm: LanguageModel, updates: tuple[Update, ...]) -> Iterator[None]:
    """The model with the updates' products added to its weights: the definition, written down independently."""
    before = {}
    for each in updates:
        tensors = each.subspace.unflatten(each.vector.to(lm.compute_dtype))
        for name, _, _ in each.subspace.modules:
            weight = lm.model.get_submodule(name).weight
            before.setdefault(name, weight.detach().clone())
            weight.data += each.subspace.scaling * tensors[f"{name}.B"] @ tensors[f"{name}.A"]
    try:
        yield
    finally:
        for name, weight in before.items():
            lm.model.get_submodule(name).weight.data = weight


def requests_of(lm: LanguageModel) -> list[DecodingRequest]:
    return [
        DecodingRequest(prompt, updates, 4 + number % 6, stop=())
        for number, (prompt, updates) in enumerate(product(PROMPTS, combinations(lm)))
    ]


def with_merged_weights(lm: LanguageModel, request: DecodingRequest) -> str:
    with merged(lm, request.updates):
        return alone(lm, DecodingRequest(request.prompt, (), request.max_new_tokens, stop=()))


def test_logits_under_updates_in_several_subspaces_are_those_of_the_merged_weights(tiny64: LanguageModel) -> None:
    ids = torch.randint(3, 900, (1, 9), generator=torch.Generator().manual_seed(1))
    found = []
    for updates in combinations(tiny64):
        with torch.no_grad(), tiny64.applied({each.subspace: each.vector.double() for each in updates}):
            found.append(tiny64.model(input_ids=ids).logits)
        with torch.no_grad(), merged(tiny64, updates):
            expected = tiny64.model(input_ids=ids).logits
        torch.testing.assert_close(found[-1], expected, rtol=1e-9, atol=1e-9)
    assert all((one - other).abs().max() > 1e-2 for i, one in enumerate(found) for other in found[:i])


@pytest.mark.slow
def test_rows_of_one_batch_with_updates_of_three_subspaces_answer_as_merged_weights(tiny64: LanguageModel) -> None:
    """Prompts are read whole and in pieces beside rows that are being decoded; rows come, go and move."""
    requests = requests_of(tiny64)
    expected = [with_merged_weights(tiny64, request) for request in requests]
    assert len(set(expected)) > len(PROMPTS) * 5
    rng = random.Random(3)
    for rows, piece, steps in [(3, 16, 60), (6, 7, 60), (16, 2048, 4)]:
        engine = Engine(tiny64, max_rows=rows, prefill_tokens=piece)
        heard = run(engine, requests, [rng.randrange(steps) for _ in requests])
        assert [item.text for item in heard] == expected
        assert max(item.finished.largest_batch for item in heard if item.finished) == rows


def test_generate_decodes_rows_of_several_subspaces_together(tiny64: LanguageModel) -> None:
    requests = requests_of(tiny64)
    found = generate(tiny64, [GenerationRequest(r.prompt, r.updates, r.max_new_tokens) for r in requests[:7]])
    for request, generation in zip(requests, found, strict=False):
        with merged(tiny64, request.updates):
            single = generate(tiny64, [GenerationRequest(request.prompt, (), request.max_new_tokens)])[0]
        assert generation.text == single.text


def test_a_cancelled_row_changes_nobody_in_any_subspace(tiny64: LanguageModel) -> None:
    requests = [DecodingRequest(PROMPTS[0], updates, 8, stop=()) for updates in combinations(tiny64)]
    expected = [alone(tiny64, request) for request in requests]
    for gone, at in product(range(len(requests)), (1, 3)):
        engine, heard = Engine(tiny64), [Heard() for _ in requests]
        rows = [engine.submit(request, listener) for request, listener in zip(requests, heard, strict=True)]
        for _ in range(at):
            engine.step()
        rows[gone].cancelled = True
        while engine.step():
            pass
        assert [h.text for i, h in enumerate(heard) if i != gone] == [e for i, e in enumerate(expected) if i != gone]


def hooks(lm: LanguageModel) -> int:
    return sum(len(module._forward_hooks) for module in lm.model.modules())


def test_another_subspace_costs_memory_and_hooks_only_while_a_row_uses_it(tiny: LanguageModel) -> None:
    own, attention, mlps = subspaces(tiny)
    idle = hooks(tiny)
    engine = Engine(tiny)
    lengths = {own: 3, attention: 6, mlps: 9}
    for subspace, length in lengths.items():
        engine.submit(DecodingRequest(PROMPTS[0], update(tiny, 1, 0.2, subspace), length, stop=()), Heard())
    engine.submit(DecodingRequest(PROMPTS[0], (), 12, stop=()), Heard())
    seen = []
    while engine.step():
        seen.append((len(engine._updates._kept), hooks(tiny) - idle))
    assert list(dict.fromkeys(seen)) == [(3, 12 + 12), (2, 12), (1, 0)]


def test_an_engine_that_fails_or_is_beside_another_takes_off_its_own_hooks_only(tiny: LanguageModel) -> None:
    request = DecodingRequest(PROMPTS[0], update(tiny, 1, 0.2, subspaces(tiny)[1]), 8, stop=())
    expected, idle = alone(tiny, request), hooks(tiny)
    one, other, heard = Engine(tiny), Engine(tiny), Heard()
    one.submit(request, Heard())
    other.submit(request, heard)
    for engine in (one, other):
        engine.step()
    one.fail(RuntimeError("the pass failed"))
    while other.step():
        pass
    assert heard.text == expected
    assert hooks(tiny) == idle


def test_a_pass_without_a_row_of_a_subspace_does_not_apply_it(tiny: LanguageModel, monkeypatch: Any) -> None:
    _, attention, mlps = subspaces(tiny)
    applied: list[tuple[Subspace, int]] = []
    for subspace in (attention, mlps):
        lora = tiny.lora_for(subspace)
        real = lora.applied_scaled

        def watched(tensors: dict[str, Tensor], subspace: Subspace = subspace, real: Any = real) -> Any:
            first = next(iter(tensors.values()))
            applied.append((subspace, first.shape[0] if first.dim() == 3 else 1))
            return real(tensors)

        monkeypatch.setattr(lora, "applied_scaled", watched)
    requests = [DecodingRequest(PROMPTS[1], update(tiny, 1, 0.2, s), 3, stop=()) for s in (attention, mlps)]
    run(Engine(tiny), requests, [0, 4])
    assert applied == [(attention, 1)] * 3 + [(mlps, 1)] * 3


def test_the_same_answer_whoever_used_the_row_before(tiny64: LanguageModel) -> None:
    requests = requests_of(tiny64)[:7]
    expected = [alone(tiny64, request) for request in requests]
    engine = Engine(tiny64, max_rows=2)
    order = [0, 4, 1, 6, 0, 3, 2, 5, 0, 6, 4, 0]
    assert [item.text for item in run(engine, [requests[i] for i in order])] == [expected[i] for i in order]


def test_weights_are_never_written_by_any_subspace(tiny: LanguageModel) -> None:
    before = tiny.identity()
    run(Engine(tiny), requests_of(tiny)[:7])
    assert tiny.identity() == before


def test_two_updates_in_one_subspace_are_refused(tiny: LanguageModel) -> None:
    both = update(tiny, 1) + update(tiny, 2)
    with refused(ModelError, "several_updates_in_one_subspace", updates=2, subspaces=1):
        Engine(tiny).submit(DecodingRequest("a", both), Heard())
    with refused(ModelError, "several_updates_in_one_subspace", updates=2, subspaces=1):
        generate(tiny, [GenerationRequest("a", both)])


@pytest.mark.parametrize(
    ("module", "code", "found"),
    [
        (("model.layers.9.mlp.up_proj", 32, 48), "not_linear", None),
        (("model.layers.1.mlp", 32, 48), "not_linear", "LlamaMLP"),
        (("model.layers.1.mlp.up_proj", 32, 64), "wrong_size", [32, 48]),
    ],
)
def test_a_subspace_of_another_model_is_refused_by_the_name_of_its_module(
    tiny: LanguageModel, module: tuple[str, int, int], code: str, found: object
) -> None:
    foreign = Subspace((module,), 2, 1.0)
    with refused(ModelError, code, module=module[0], found=found):
        tiny.lora_for(foreign)
    with refused(ModelError, code, module=module[0], found=found):
        Engine(tiny).submit(DecodingRequest("a", update(tiny, 1, 0.2, foreign)), Heard())


def test_a_projection_whose_weight_is_transposed_is_adapted_as_any_other() -> None:
    model = torch.nn.Sequential(Conv1D(3, 5)).double()
    subspace, x = Subspace((("0", 5, 3),), 2, 0.5), torch.randn(4, 5).double()
    flat = torch.randn(subspace.size).double()
    tensors = subspace.unflatten(flat)
    expected = model(x) + 0.5 * x @ (tensors["0.B"] @ tensors["0.A"]).T
    with BatchedLora(model, subspace).applied(flat):
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
    with refused(ModelError, "wrong_size", expected=[3, 5], found=[5, 3]):
        BatchedLora(model, Subspace((("0", 3, 5),), 2, 0.5))


def test_an_update_has_the_size_of_its_subspace(tiny: LanguageModel) -> None:
    with refused(ModelError, "vector_size", expected=tiny.subspace.size, found=[2, tiny.subspace.size]):
        Update(tiny.subspace, torch.zeros(2, tiny.subspace.size))
