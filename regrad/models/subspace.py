"""The adaptation subspace: the LoRA tensors of the adapted projections in one fixed order.

Everything that is learned, stored or summed is a flat vector of P numbers; here it is cut into tensors and put back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from regrad.errors import ModelError
from regrad.models.config import SubspaceConfig

_LAYER = re.compile(r"^(?:.*\.)?layers\.(\d+)\.(?:.*\.)?(\w+)$")


@dataclass(frozen=True)
class Subspace:
    """Names, shapes and offsets of the LoRA tensors. `modules` are (path, in_features, out_features) in order.

    Each module contributes A [rank, in] and then B [out, rank]; the update of its output is scaling * B A x.
    """

    modules: tuple[tuple[str, int, int], ...]
    rank: int
    scaling: float

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Tensor name (`<module>.A`, `<module>.B`) to shape, in the order of the flat vector."""
        shapes: dict[str, tuple[int, int]] = {}
        for name, inputs, outputs in self.modules:
            shapes[f"{name}.A"] = (self.rank, inputs)
            shapes[f"{name}.B"] = (outputs, self.rank)
        return shapes

    @cached_property
    def lengths(self) -> list[int]:
        """Numbers in each tensor, in order."""
        return [rows * columns for rows, columns in self.shapes.values()]

    @property
    def size(self) -> int:
        """P: how many numbers an atom has."""
        return sum(self.lengths)

    def unflatten(self, flat_P: Tensor) -> dict[str, Tensor]:
        """[..., P] -> tensors [..., rows, columns] by name (views; differentiable)."""
        if flat_P.shape[-1] != self.size:
            raise ModelError(f"a vector of {self.size} numbers is expected, found {flat_P.shape[-1]}")
        parts = torch.split(flat_P, self.lengths, dim=-1)
        items = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape(*part.shape[:-1], *shape) for (name, shape), part in items}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors [..., rows, columns] by name -> [..., P]; raises `ModelError` for missing names or wrong shapes."""
        wrong = [
            name for name, shape in self.shapes.items() if name not in tensors or tensors[name].shape[-2:] != shape
        ]
        if wrong or len(tensors) != len(self.shapes):
            unknown = sorted(set(tensors) - set(self.shapes))
            raise ModelError(f"these tensors do not fit the subspace: {(wrong or unknown)[:3]}")
        return torch.cat([tensors[name].flatten(-2) for name in self.shapes], dim=-1)

    def per_tensor(self, values: Tensor) -> Tensor:
        """Step sizes as [P]: one a tensor [n_tensors] is repeated over its tensor; [P] stays as it is."""
        if values.shape[-1] == self.size:
            return values
        lengths = torch.tensor(self.lengths, device=values.device)
        return values.repeat_interleave(lengths, output_size=self.size)

    def initial(self, seed: int = 0) -> Tensor:
        """The standard LoRA start as a flat float32 vector: A Kaiming-uniform (bound 1/sqrt(in)), B zero."""
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, Tensor] = {}
        for name, shape in self.shapes.items():
            uniform = torch.rand(shape, generator=generator) * 2 - 1
            tensors[name] = uniform / math.sqrt(shape[1]) if name.endswith(".A") else torch.zeros(shape)
        return self.flatten(tensors)

    def updates(self, vector_P: Tensor | None) -> tuple[Update, ...]:
        """What a request carries that runs with this vector, or with the base model alone."""
        return () if vector_P is None else (Update(self, vector_P),)

    def to_json(self) -> dict[str, Any]:
        """A description that `from_json` reads back."""
        return {"modules": [list(module) for module in self.modules], "rank": self.rank, "scaling": self.scaling}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Subspace:
        """The inverse of `to_json`."""
        modules = tuple((str(name), int(inputs), int(outputs)) for name, inputs, outputs in data["modules"])
        return Subspace(modules, int(data["rank"]), float(data["scaling"]))


@dataclass(frozen=True, eq=False)
class Update:
    """A temporary change of a model's weights: LoRA parameters [P] and the subspace that they belong to.

    Raises `ModelError` for a vector of another size.
    """

    subspace: Subspace
    vector: Tensor

    def __post_init__(self) -> None:
        if self.vector.shape != (self.subspace.size,):
            raise ModelError(
                f"an update in this subspace has {self.subspace.size} numbers, found {tuple(self.vector.shape)}"
            )


def by_subspace(updates: Sequence[Update]) -> dict[Subspace, Tensor]:
    """The vectors of updates that are applied together: what each adds to the weights is added up.

    Raises `ModelError` if two are in one subspace: the sum of their vectors is not the sum of their products B A.
    """
    vectors = {update.subspace: update.vector for update in updates}
    if len(vectors) < len(updates):
        raise ModelError(
            f"{len(updates)} updates are in {len(vectors)} subspaces, and there can be one in each; add the vectors up "
            "first, if they are steps from one start, or place them side by side in a subspace of their ranks' sum"
        )
    return vectors


def finite_rows(vectors_NP: Tensor) -> Tensor:
    """Which vectors have finite numbers only [N] bool.

    A number that is not finite makes its row's sum so, and sums read the vectors once; as the sum of finite numbers
    can overflow, rows in doubt are then looked at number by number.
    """
    finite = torch.isfinite(vectors_NP.sum(1))
    if not finite.all():
        finite[~finite] = torch.isfinite(vectors_NP[~finite]).all(1)
    return finite


def block_of(module: str) -> tuple[str, int]:
    """The path of the list of blocks that a projection is in, and the number of its block."""
    match = re.match(r"^((?:.*\.)?layers)\.(\d+)\.", module)
    if match is None:
        raise ModelError(f"{module} is in no numbered block")
    return match[1], int(match[2])


def find_subspace(model: nn.Module, config: SubspaceConfig) -> Subspace:
    """The subspace that `config` describes in this model's text decoder.

    Raises `ModelError` if a layer or projection is not there, or if several modules answer to one.
    """
    linears = _linears_by_place(model)
    if not linears:
        raise ModelError(_unknown_layout(model))
    count = 1 + max(layer for layer, _ in linears)
    layers = range(count // 2, count) if config.layers == "upper-half" else config.layers
    wanted = [(layer, projection) for layer in layers for projection in config.projections]
    missing = [place for place in wanted if place not in linears]
    if missing or not wanted:
        known = sorted({projection for _, projection in linears})
        raise ModelError(
            f"the model has no layer and projection {missing[:3]}; it has {count} layers of {known}{_fused(model)}"
        )
    for layer, projection in wanted:
        if len(found := linears[layer, projection]) > 1:
            single = sorted({name for (_, name), modules in linears.items() if len(modules) == 1})
            raise ModelError(
                f"layer {layer} has {len(found)} modules for the projection {projection}, {found[0][0]} to "
                f"{found[-1][0]}, and an update belongs to one that sees every token, which no expert of a mixture "
                f"does; set `subspace.projections` to some of those that a layer has once: {single}"
            )
    return Subspace(tuple(linears[place][0] for place in wanted), config.rank, config.scaling)


def _linears_by_place(model: nn.Module) -> dict[tuple[int, str], list[tuple[str, int, int]]]:
    """(layer, projection) -> (path, in, out) of the linear modules there, in the text decoder.

    The towers of a multimodal model (vision, audio) have numbered layers as well, which are not the text's.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    inside = set(decoder.modules())  # type: ignore[union-attr]
    linears: dict[tuple[int, str], list[tuple[str, int, int]]] = {}
    for name, module in model.named_modules():
        match = _LAYER.match(name)
        if match and isinstance(module, nn.Linear) and module in inside:
            place = int(match[1]), match[2]
            linears.setdefault(place, []).append((name, module.in_features, module.out_features))
    return linears


def _unknown_layout(model: nn.Module) -> str:
    """What to say of a model without linear modules in `layers.N`: GPT-2, say, whose blocks are `transformer.h.N`."""
    lists = [(len(module), name) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    where = f"its blocks seem to be `{max(lists)[1]}`" if lists else "it has no list of blocks"
    return (
        f"regrad cannot adapt {type(model).__name__}: {where}, and only linear modules in blocks named `layers.N` are "
        "known, as Llama, Mistral, Qwen, Gemma and Phi have them; choose such a model"
    )


def _fused(model: nn.Module) -> str:
    """A remark on a mixture of experts that keeps the weights of all experts of a layer in one parameter."""
    names = [name for name, value in model.named_parameters() if value.dim() == 3 and ".experts." in name]
    if not names:
        return ""
    return (
        f". Its experts' projections are fused in parameters such as {names[0]}, which cannot be adapted; set "
        "`subspace.projections` to some of those that it has, such as the attention's"
    )
