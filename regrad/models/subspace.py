"""The adaptation subspace: the LoRA tensors of the adapted projections in one fixed order.

Everything that is learned, stored or summed is a flat vector of P numbers. Here it is cut into tensors and put back,
and written as a standard PEFT adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regrad.errors import ModelError
from regrad.models.config import ActsOn, SubspaceConfig
from regrad.models.sharded import whole_shape

_BLOCK = re.compile(r"^(.*?)\.(\d+)\.")
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


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
            raise ModelError(
                f"expected a vector of {self.size} numbers, found {flat_P.shape[-1]}",
                code="vector_size",
                expected=self.size,
                found=flat_P.shape[-1],
            )
        parts = torch.split(flat_P, self.lengths, dim=-1)
        items = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape(*part.shape[:-1], *shape) for (name, shape), part in items}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors [..., rows, columns] by name -> [..., P]; raises `ModelError` for missing names or wrong shapes."""
        wrong = [
            name for name, shape in self.shapes.items() if name not in tensors or tensors[name].shape[-2:] != shape
        ]
        if wrong or len(tensors) != len(self.shapes):
            wrong = wrong or sorted(set(tensors) - set(self.shapes))
            raise ModelError(f"these tensors do not fit the subspace: {wrong[:3]}", code="wrong_tensors", tensors=wrong)
        return torch.cat([tensors[name].flatten(-2) for name in self.shapes], dim=-1)

    def per_tensor(self, values: Tensor) -> Tensor:
        """Step sizes as [P]: one per tensor [n_tensors] is repeated over its tensor; [P] stays as it is."""
        if values.shape[-1] == self.size:
            return values
        lengths = torch.tensor(self.lengths, device=values.device)
        return values.repeat_interleave(lengths, output_size=self.size)

    def initial(self, seed: int = 0) -> Tensor:
        """The standard start of a LoRA as a flat float32 vector: A Kaiming-uniform (bound 1/sqrt(in)), B zero."""
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, Tensor] = {}
        for name, shape in self.shapes.items():
            uniform = torch.rand(shape, generator=generator) * 2 - 1
            tensors[name] = uniform / math.sqrt(shape[1]) if name.endswith(".A") else torch.zeros(shape)
        return self.flatten(tensors)

    def updates(self, vector_P: Tensor | None, acts_on: ActsOn = "everything") -> tuple[Update, ...]:
        """The updates of a request that runs with this vector, or (None) with the base model alone."""
        return () if vector_P is None else (Update(self, vector_P, acts_on),)

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

    With `acts_on` "answer" the base model alone reads the prompt up to its last token, whose output is the answer's
    first, and the update acts from there on. Raises `ModelError` for a vector of another size.
    """

    subspace: Subspace
    vector: Tensor
    acts_on: ActsOn = "everything"

    def __post_init__(self) -> None:
        if self.vector.shape != (self.subspace.size,):
            raise ModelError(
                f"an update in this subspace has {self.subspace.size} numbers, found {tuple(self.vector.shape)}",
                code="vector_size",
                expected=self.subspace.size,
                found=list(self.vector.shape),
            )


def by_subspace(updates: Sequence[Update]) -> dict[Subspace, Tensor]:
    """The vectors of updates that are applied together; raises `ModelError` if two are in one subspace."""
    vectors = {update.subspace: update.vector for update in updates}
    # The sum of two vectors is not the sum of their products B A, so which of the two is meant must be said.
    if len(vectors) < len(updates):
        raise ModelError(
            f"expected at most one update in each subspace, found {len(updates)} in {len(vectors)}; add their vectors "
            "if they are steps from one start, else place them side by side in a subspace with the sum of their ranks",
            code="several_updates_in_one_subspace",
            updates=len(updates),
            subspaces=len(vectors),
        )
    return vectors


def finite_rows(vectors_NP: Tensor) -> Tensor:
    """Which vectors [N, P] have finite numbers only [N] bool."""
    # A sum reads each vector once and keeps nothing, and one number that is not finite shows in it. The sum of finite
    # numbers can overflow, though, so rows in doubt are then looked at number by number.
    finite = torch.isfinite(vectors_NP.sum(1))
    if not finite.all():
        finite[~finite] = torch.isfinite(vectors_NP[~finite]).all(1)
    return finite


def block_of(module: str) -> tuple[str, int]:
    """The path of the list of blocks that a projection is in, and the number of its block."""
    match = _BLOCK.match(module)
    if match is None:
        raise ModelError(f"expected a projection in a numbered block, found {module}", code="no_block", module=module)
    return match[1], int(match[2])


def find_subspace(model: nn.Module, config: SubspaceConfig) -> Subspace:
    """The subspace that `config` describes in this model's text decoder.

    A projection is named by its path in a block or by the end of that path: `c_fc`, or `mlp.c_proj` beside
    `attn.c_proj`. Raises `ModelError` if a layer or projection is missing, or if a name fits several modules.
    """
    # Here, as a bank needs subspaces and no model: importing transformers costs each of its processes half a second.
    from regrad.models.architectures import architecture_of

    architecture = architecture_of(model)
    path, blocks = architecture.block_list(model)
    linears = [_linear_sizes(block, architecture.linear) for block in blocks.children()]
    found = _named_modules(linears, config)
    missing = [place for place, names in found.items() if not names]
    if missing or not found:
        raise _no_projection(model, linears, missing)
    modules = []
    for (layer, projection), names in found.items():
        # It must be one module that sees every token, which no expert of a mixture does.
        if len(names) > 1 or _is_numbered(names[0]):
            first, last = (f"{path}.{layer}.{name}" for name in (names[0], names[-1]))
            choices = _projection_names(linears[layer : layer + 1])
            raise ModelError(
                f"layer {layer} has {len(names)} modules for the projection {projection}, {first} to {last}, but an "
                "update needs one module that sees every token, and an expert of a mixture sees only some; set "
                f"`subspace.projections` to names that fit one module of a layer: {choices}",
                code="ambiguous_projection",
                layer=layer,
                projection=projection,
                modules=len(names),
                choices=choices,
            )
        modules.append((f"{path}.{layer}.{names[0]}", *linears[layer][names[0]]))
    return Subspace(tuple(modules), config.rank, config.scaling)


def _linear_sizes(block: nn.Module, kind: type[nn.Module]) -> dict[str, tuple[int, int]]:
    """A block's linear modules by their path in it: the numbers of their inputs and outputs."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, module in block.named_modules():
        if isinstance(module, kind):
            rows, columns = whole_shape(module.weight)  # type: ignore[arg-type]
            # The other kind, Conv1D, keeps its weight as [in, out].
            sizes[name] = (columns, rows) if kind is nn.Linear else (rows, columns)
    return sizes


def _named_modules(linears: Sequence[Mapping[str, object]], config: SubspaceConfig) -> dict[tuple[int, str], list[str]]:
    """The paths of the modules that each layer and projection of the settings stands for."""
    named = {"upper-half": range(len(linears) // 2, len(linears)), "all": range(len(linears))}
    layers = named[config.layers] if isinstance(config.layers, str) else config.layers
    found: dict[tuple[int, str], list[str]] = {}
    for layer in layers:
        names = list(linears[layer]) if 0 <= layer < len(linears) else []
        for projection in config.projections:
            found[layer, projection] = [n for n in names if n == projection or n.endswith(f".{projection}")]
    return found


def _no_projection(
    model: nn.Module, linears: Sequence[Mapping[str, object]], missing: Sequence[tuple[int, str]]
) -> ModelError:
    # Mixtures of experts that keep a layer's experts in one parameter have no module to adapt.
    fused = [name for name, value in model.named_parameters() if value.dim() == 3 and ".experts." in name]
    remark = ""
    if fused:
        remark = (
            f". Its experts' projections are fused in parameters such as {fused[0]}, which cannot be adapted; set "
            "`subspace.projections` to others of its projections, such as the attention's"
        )
    return ModelError(
        f"the model has no layer and projection {list(missing[:3])}; it has {len(linears)} layers with "
        f"{_projection_names(linears, experts=True)}{remark}",
        code="projection_not_found",
        missing=missing,
        fused=fused[0] if fused else None,
    )


def _is_numbered(name: str) -> bool:
    """Whether a module is in a list inside its block, one of several alike: an expert."""
    return any(part.isdecimal() for part in name.split("."))


def _projection_names(linears: Sequence[Mapping[str, object]], experts: bool = False) -> list[str]:
    """The shortest names that fit one module of some block; with `experts`, also those of a mixture's experts."""
    names = set()
    for block in linears:
        for path in block:
            parts = path.split(".")
            if not _is_numbered(path):
                ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
                names.add(next(e for e in ends if sum(other == e or other.endswith(f".{e}") for other in block) == 1))
            elif experts:
                names.add(parts[-1])
    return sorted(names)


def save_adapter(folder: Path, base: str, subspace: Subspace, flat_P: Tensor) -> None:
    """Write a vector as a PEFT adapter of the model called `base`: `adapter_config.json` and weights.

    In bf16 if that loses nothing, else in float32. Raises `SafetensorError` or `OSError`.
    """
    from peft import LoraConfig  # brings every model of transformers with it: seconds, in each process of a cluster

    flat_P = flat_P.detach().cpu().float()
    rounded_P = flat_P.bfloat16()
    tensors = subspace.unflatten(rounded_P if rounded_P.float().equal(flat_P) else flat_P)
    weights = {_peft_name(name): tensor.contiguous() for name, tensor in tensors.items()}
    save_file(weights, folder / _ADAPTER_WEIGHTS)
    alpha = subspace.scaling * subspace.rank
    config = LoraConfig(
        r=subspace.rank,
        # PEFT divides by r; a whole number is kept, since some servers take no other.
        lora_alpha=round(alpha) if math.isclose(alpha, round(alpha)) else alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=[name for name, _, _ in subspace.modules],
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))


def load_adapter(folder: Path, subspace: Subspace) -> Tensor:
    """What `save_adapter` wrote [P]; raises `KeyError`, `ModelError`, `SafetensorError` or `OSError` for another."""
    tensors = load_file(folder / _ADAPTER_WEIGHTS)
    return subspace.flatten({name: tensors[_peft_name(name)].float() for name in subspace.shapes})


def _peft_name(name: str) -> str:
    module, factor = name.rsplit(".", 1)
    return f"base_model.model.{module}.lora_{factor}.weight"
