from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regrad.errors import ModelError
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace, find_subspace, finite_rows
from tests.tools.random_models import random_gemma3, random_model
from tests.tools.refusals import refused

modules = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


@given(modules, st.integers(1, 5), st.integers(0, 3))
def test_flatten_undoes_unflatten(sizes: list[tuple[int, int]], rank: int, rows: int) -> None:
    subspace = Subspace(tuple((f"m{i}", a, b) for i, (a, b) in enumerate(sizes)), rank, 2.0)
    flat = torch.randn(rows, subspace.size)
    tensors = subspace.unflatten(flat)
    assert {name: tuple(t.shape[-2:]) for name, t in tensors.items()} == subspace.shapes
    assert torch.equal(subspace.flatten(tensors), flat)


@given(modules, st.integers(1, 5))
def test_description_is_read_back(sizes: list[tuple[int, int]], rank: int) -> None:
    subspace = Subspace(tuple((f"m{i}", a, b) for i, (a, b) in enumerate(sizes)), rank, 0.5)
    assert Subspace.from_json(subspace.to_json()) == subspace


def test_per_tensor_repeats_each_value_over_its_tensor() -> None:
    subspace = Subspace((("m", 3, 2),), 2, 1.0)
    assert subspace.per_tensor(torch.tensor([1.0, 5.0])).tolist() == [1.0] * 6 + [5.0] * 4


def test_wrong_sizes_and_names_are_refused() -> None:
    subspace = Subspace((("m", 3, 2),), 2, 1.0)
    with refused(ModelError, "vector_size", expected=10, found=9):
        subspace.unflatten(torch.zeros(9))
    tensors = subspace.unflatten(torch.zeros(10))
    with refused(ModelError, "wrong_tensors", tensors=["extra"]):
        subspace.flatten({**tensors, "extra": torch.zeros(1, 1)})
    with refused(ModelError, "wrong_tensors", tensors=["m.A"]):
        subspace.flatten({**tensors, "m.A": torch.zeros(3, 2)})


def test_upper_half_and_explicit_layers(tiny: LanguageModel) -> None:
    names = [name for name, _, _ in find_subspace(tiny.model, SubspaceConfig(rank=2)).modules]
    assert names == [f"model.layers.{i}.mlp.{p}_proj" for i in (2, 3) for p in ("gate", "up", "down")]
    chosen = find_subspace(tiny.model, SubspaceConfig(rank=2, layers=(0,), projections=("q_proj",)))
    assert chosen.modules == (("model.layers.0.self_attn.q_proj", 32, 32),)


def test_a_projection_that_is_not_there_is_named(tiny: LanguageModel) -> None:
    with refused(ModelError, "projection_not_found", missing=[(2, "gates_proj"), (3, "gates_proj")], fused=None):
        find_subspace(tiny.model, SubspaceConfig(projections=("gates_proj",)))


class Experts(nn.Module):
    """Two blocks, each with one attention projection and three experts, as lists of linear modules."""

    def __init__(self) -> None:
        super().__init__()
        experts = [nn.ModuleList([nn.ModuleDict({"gate_proj": nn.Linear(4, 6)}) for _ in range(3)]) for _ in range(2)]
        blocks = [nn.ModuleDict({"q_proj": nn.Linear(4, 4), "experts": each}) for each in experts]
        self.layers = nn.ModuleList(blocks)


def test_a_projection_that_several_experts_have_is_refused() -> None:
    with refused(ModelError, "ambiguous_projection", layer=1, modules=3, choices=["q_proj"]):
        find_subspace(Experts(), SubspaceConfig(projections=("gate_proj",)))
    assert find_subspace(Experts(), SubspaceConfig(projections=("q_proj",))).modules == (("layers.1.q_proj", 4, 4),)


def test_experts_that_are_fused_in_one_parameter_are_named() -> None:
    model = random_model("mixtral", num_local_experts=2)
    with refused(ModelError, "projection_not_found", fused="model.layers.0.mlp.experts.gate_up_proj"):
        find_subspace(model, SubspaceConfig())
    assert len(find_subspace(model, SubspaceConfig(projections=("q_proj", "v_proj"))).modules) == 2


def test_a_model_whose_blocks_have_another_name_is_refused_with_that_name() -> None:
    with refused(ModelError, "unknown_layout", model="GPTJForCausalLM", blocks="transformer.h"):
        find_subspace(random_model("gptj", rotary_dim=4), SubspaceConfig())


def test_modules_of_one_name_are_told_apart_by_more_of_their_path() -> None:
    model = random_model("gpt2")
    choices = ["attn.c_proj", "c_attn", "c_fc", "mlp.c_proj"]
    with refused(ModelError, "ambiguous_projection", layer=1, modules=2, choices=choices):
        find_subspace(model, SubspaceConfig(projections=("c_proj",)))
    modules = find_subspace(model, SubspaceConfig(projections=("c_fc", "mlp.c_proj"))).modules
    assert modules == (("transformer.h.1.mlp.c_fc", 32, 128), ("transformer.h.1.mlp.c_proj", 128, 32))


def test_the_layers_of_a_vision_tower_are_not_the_text_models() -> None:
    """The tower has more layers than the text model, and projections of the same names."""
    model = random_gemma3(sliding_window=24, max_position_embeddings=64)
    names = [name for name, _, _ in find_subspace(model, SubspaceConfig(projections=("q_proj",))).modules]
    assert names == [f"model.language_model.layers.{i}.self_attn.q_proj" for i in (2, 3)]


def test_the_published_sizes_of_the_atoms() -> None:
    """Llama-3.2-1B, 3B and Llama-3.1-8B as in the paper's released configuration."""
    for hidden, ffn, layers, rank, expected in (
        (2048, 8192, 8, 16, 3_932_160),
        (3072, 8192, 14, 8, 3_784_704),
        (4096, 14336, 16, 4, 3_538_944),
    ):
        shapes = (("gate", hidden, ffn), ("up", hidden, ffn), ("down", ffn, hidden))
        modules_ = tuple((f"{i}.{name}", a, b) for i in range(layers) for name, a, b in shapes)
        assert Subspace(modules_, rank, 2.0).size == expected


def test_a_row_is_finite_if_all_its_numbers_are_even_if_their_sum_is_not() -> None:
    inf, nan, most = float("inf"), float("nan"), torch.finfo(torch.float32).max
    rows = torch.tensor([[1.0, 2.0], [most, most], [inf, 1.0], [inf, -inf], [nan, 0.0], [-most, -most]])
    assert finite_rows(rows).tolist() == [True, True, False, False, False, True]
    assert finite_rows(torch.empty(0, 3)).tolist() == []
