"""A base model that is split over devices: which blocks go where, and that nothing meets a tensor of another device."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise

import pytest
import torch
from accelerate import dispatch_model
from accelerate.utils import check_device_map
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from regrad.errors import ModelError
from regrad.gradients.extractor import passage_batch, passage_gradients
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.inference.verification import verify_decoding
from regrad.models.batching import pad_batch, sequence_losses
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.placement import connect, device_map_of, fitting, parts_of, stages
from regrad.models.subspace import find_subspace
from tests.tools.decoded import PROMPTS, run, update
from tests.tools.random_models import random_gemma3, random_model
from tests.tools.refusals import refused
from tests.tools.second_device import FIRST, SECOND, second_device, split

SEQUENCES = [[1, 5, 9, 20, 33, 7], [1, 8, 9], [1, 40, 41, 42, 43]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 20), st.integers(1, 3))
def test_the_fullest_device_has_as_little_as_possible(sizes: list[int], beside: int, devices: int) -> None:
    def fullest(places: tuple[int, ...] | list[int]) -> int:
        loads = [beside, *[0] * (devices - 1)]
        for place, size in zip(places, sizes, strict=True):
            loads[place] += size
        return max(loads)

    places = stages(sizes, beside, devices)
    assert all(0 <= after - before <= 1 for before, after in pairwise([0, *places]))
    assert fullest(places) == min(map(fullest, combinations_with_replacement(range(devices), len(sizes))))


@pytest.mark.parametrize("model", [random_model("llama"), random_model("gpt2"), random_gemma3()])
def test_every_tensor_has_one_device_and_only_blocks_are_elsewhere(model: PreTrainedModel) -> None:
    found = device_map_of(model.config, [FIRST, SECOND])
    check_device_map(model, found)
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    for name in names:
        assert sum(name == place or name.startswith(f"{place}.") for place in found) == 1, name
    away = [place for place, device in found.items() if device == SECOND]
    assert away
    assert all(place.rpartition(".")[2].isdecimal() for place in away)


def test_more_devices_than_blocks_are_refused(tiny: LanguageModel) -> None:
    with refused(ModelError, "too_many_devices", blocks=4, devices=5):
        device_map_of(tiny.model.config, [FIRST] * 5)


def test_weights_that_do_not_fit_are_told_with_their_devices() -> None:
    devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
    with refused(ModelError, "out_of_memory", path="base", devices=["cuda:0", "cuda:1"]), fitting("base", devices):
        raise torch.OutOfMemoryError


def test_a_model_that_is_loaded_by_a_device_map_is_the_same(tiny: LanguageModel) -> None:
    """The one device twice: the way of loading is that of several, and no tensor has to move."""
    there = load_language_model(tiny.config, ["cpu", "cpu"])
    assert there.identity() == tiny.identity()
    phi_P = 0.1 * torch.randn(tiny.subspace.size, generator=torch.Generator().manual_seed(1))
    found, expected = (
        passage_gradients(lm, phi_P, passage_batch(lm, SEQUENCES), recompute=True)[0] for lm in (there, tiny)
    )
    assert torch.equal(found, expected)


def test_of_the_hooks_of_accelerate_none_is_left(tiny: LanguageModel) -> None:
    places = {name: str(place) for name, place in device_map_of(tiny.model.config, [FIRST, FIRST]).items()}
    dispatch_model(tiny.model, places, main_device=FIRST, force_hooks=True)
    assert any(hasattr(module, "_hf_hook") for module in tiny.model.modules())
    connect(tiny.model)
    ids_NT = torch.tensor(SEQUENCES[:1])
    before = tiny.hidden(ids_NT)
    for _ in range(2):
        assert torch.equal(tiny.hidden(ids_NT, tiny.blocks.enter(ids_NT)), before)
    assert not any(hasattr(module, "_hf_hook") for module in tiny.model.modules())


def test_a_subspace_is_cut_where_the_model_is(tiny: LanguageModel) -> None:
    subspace = find_subspace(tiny.model, SubspaceConfig(rank=2, layers=(3, 1, 2), projections=("up_proj", "q_proj")))
    vector_P = torch.arange(subspace.size)
    (whole,) = parts_of(tiny.model, subspace)
    assert whole.subspace == subspace
    assert torch.equal(whole.of(vector_P), vector_P)
    with second_device():
        split(tiny, 2)
        parts = parts_of(tiny.model, subspace)
        pieces = {name: t for part in parts for name, t in part.subspace.unflatten(part.of(vector_P)).items()}
        assert [part.device for part in parts] == [SECOND, FIRST]
        assert pieces.keys() == subspace.shapes.keys()
        assert all(torch.equal(pieces[name], tensor) for name, tensor in subspace.unflatten(vector_P).items())


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_a_split_model_are_those_of_the_whole(tiny: LanguageModel, create_graph: bool) -> None:
    """To the last bit: the same sums, in other places. With `recompute` the blocks run again in the backward pass."""
    whole = load_language_model(tiny.config, "cpu")
    phi_P = 0.1 * torch.randn(tiny.subspace.size, generator=torch.Generator().manual_seed(1))

    def gradients(lm: LanguageModel) -> tuple[torch.Tensor, ...]:
        phi = phi_P.clone().requires_grad_()
        found = passage_gradients(
            lm, phi, passage_batch(lm, SEQUENCES), create_graph=create_graph, recompute=not create_graph
        )
        return (*found, *(torch.autograd.grad(found[0].square().sum(), phi) if create_graph else ()))

    expected = gradients(whole)
    with second_device():
        split(tiny, 3)
        found = gradients(tiny)
    assert all(one.device == FIRST for one in found)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_mask_of_tokens_reaches_both_devices(tiny: LanguageModel) -> None:
    whole = load_language_model(tiny.config, "cpu")
    flat_P = 0.1 * torch.randn(tiny.subspace.size, generator=torch.Generator().manual_seed(2))

    def losses(lm: LanguageModel) -> torch.Tensor:
        batch = pad_batch(SEQUENCES, [2, 1, 3], lm.pad_id, lm.device)
        with lm.lora.applied(flat_P, batch.acted_on("answer")):
            return sequence_losses(lm, batch)

    expected = losses(whole)
    with second_device():
        split(tiny, 3)
        found = losses(tiny)
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3])
def test_an_engine_of_a_split_model_answers_as_one_of_the_whole(tiny: LanguageModel, at: int) -> None:
    """Split below the first adapted block, which lower blocks are shared by, and between two adapted ones."""
    whole = load_language_model(tiny.config, "cpu")
    expected = [item.text for item in run(Engine(whole), requests_of(whole))]
    assert len(set(expected)) > 3
    with second_device():
        split(tiny, at)
        engine = Engine(tiny, max_rows=7, prefill_tokens=24)
        assert verify_decoding(tiny).shares
        assert verify_decoding(tiny).shares_whole
        assert [item.text for item in run(engine, requests_of(tiny))] == expected


def requests_of(lm: LanguageModel) -> list[DecodingRequest]:
    """Prompts that begin alike and others, with no update, one in the model's subspace, in another, on the answer."""
    other = find_subspace(lm.model, SubspaceConfig(rank=2, layers="all", projections=("q_proj", "down_proj")))
    updates = [(), update(lm, 1), update(lm, 2, subspace=other), update(lm, 3, acts_on="answer")]
    texts = [PROMPTS[0], PROMPTS[3], f"{PROMPTS[0]} It is"]
    return [DecodingRequest(text, each, 5) for each in updates for text in texts]


def test_tensors_of_two_devices_do_not_meet_unseen(tiny: LanguageModel) -> None:
    """What the tests above rest on."""
    with second_device():
        tiny.model.get_submodule("model.layers.3").to(SECOND)
        with pytest.raises(RuntimeError, match="tensors of two devices"):
            tiny.hidden(torch.tensor(SEQUENCES[:1]))
