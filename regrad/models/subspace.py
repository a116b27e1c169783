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
from transformers.pytorch_utils import Conv1D

from regrad.errors import ModelError
from regrad.models.architectures import Architecture, architecture_of
from regrad.models.config import SubspaceConfig

_BLOCK = re.compile(r"^(.*?)\.(\d+)\.")


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
    match = _BLOCK.match(module)
    if match is None:
        raise ModelError(f"{module} is in no numbered block")
    return match[1], int(match[2])


def find_subspace(model: nn.Module, config: SubspaceConfig) -> Subspace:
    """The subspace that `config` describes in this model's text decoder.

    A projection is named by its path in a block or by the end of it: `c_fc`, or `mlp.c_proj` beside `attn.c_proj`.
    Raises `ModelError` if a layer or projection is not there, or if several modules answer to one.
    """
    architecture = architecture_of(model)
    path, blocks = architecture.block_list(model)
    linears = [_linears(block, architecture) for block in blocks.children()]
    layers = range(len(linears) // 2, len(linears)) if config.layers == "upper-half" else config.layers
    wanted = [(layer, projection) for layer in layers for projection in config.projections]
    found = {place: _answering(linears, *place) for place in wanted}
    missing = [place for place in wanted if not found[place]]
    if missing or not wanted:
        raise ModelError(
            f"the model has no layer and projection {missing[:3]}; it has {len(linears)} layers of "
            f"{_names(linears, experts=True)}{_fused(model)}"
        )
    modules = []
    for (layer, projection), names in found.items():
        if len(names) > 1 or _is_numbered(names[0]):
            first, last = (f"{path}.{layer}.{name}" for name in (names[0], names[-1]))
            raise ModelError(
                f"layer {layer} has {len(names)} modules for the projection {projection}, {first} to {last}, and an "
                "update belongs to one that sees every token, which no expert of a mixture does; set "
                f"`subspace.projections` to some of those that a layer has once: {_names(linears[layer : layer + 1])}"
            )
        modules.append((f"{path}.{layer}.{names[0]}", *linears[layer][names[0]]))
    return Subspace(tuple(modules), config.rank, config.scaling)


def _linears(block: nn.Module, architecture: Architecture) -> dict[str, tuple[int, int]]:
    """Path in the block -> numbers in and out, of its linear modules."""
    linears = {}
    for name, module in block.named_modules():
        if isinstance(module, architecture.linear):
            rows, columns = module.weight.shape  # type: ignore[union-attr,misc]
            linears[name] = (rows, columns) if architecture.linear is Conv1D else (columns, rows)
    return linears


def _answering(linears: list[dict[str, tuple[int, int]]], layer: int, projection: str) -> list[str]:
    """The paths in a block of the modules that a projection's name stands for."""
    if not 0 <= layer < len(linears):
        return []
    return [name for name in linears[layer] if name == projection or name.endswith(f".{projection}")]


def _is_numbered(name: str) -> bool:
    """Whether a module is in a list in its block, one of several alike: an expert."""
    return any(part.isdecimal() for part in name.split("."))


def _names(linears: list[dict[str, tuple[int, int]]], experts: bool = False) -> list[str]:
    """The shortest names of the projections that some block has once; with `experts`, also those that it has often."""
    names = set()
    for block in linears:
        for path in block:
            if _is_numbered(path):
                names |= {path.rsplit(".", 1)[-1]} if experts else set()
                continue
            parts = path.split(".")
            ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
            names.add(
                next(end for end in ends if sum(other == end or other.endswith(f".{end}") for other in block) == 1)
            )
    return sorted(names)


def _fused(model: nn.Module) -> str:
    """A remark on a mixture of experts that keeps the weights of all experts of a layer in one parameter."""
    names = [name for name, value in model.named_parameters() if value.dim() == 3 and ".experts." in name]
    if not names:
        return ""
    return (
        f". Its experts' projections are fused in parameters such as {names[0]}, which cannot be adapted; set "
        "`subspace.projections` to some of those that it has, such as the attention's"
    )
