"""Several LoRAs as one, exactly: their A and B stand side by side in the rank, so B A is the sum of all B_j A_j."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regrad.errors import MethodError
from regrad.language_model.subspace import Subspace


def check_ranks(ranks: Sequence[int], rank: int) -> None:
    """Raise `MethodError` if LoRAs of these ranks do not fit side by side into one of `rank`."""
    if sum(ranks) > rank:
        raise MethodError(
            f"LoRAs of ranks {list(ranks)} need {sum(ranks)} together, and the model's subspace has rank {rank}; "
            "set model.subspace.rank (and alpha in proportion) higher, or ask with fewer passages"
        )


def check_joins(parts: Sequence[Subspace], target: Subspace) -> None:
    """Raise `MethodError` if LoRAs of these subspaces do not fit side by side into `target`."""
    check_ranks([part.rank for part in parts], target.rank)
    known = set(target.modules)
    for part in parts:
        foreign = [name for name, *shape in part.modules if (name, *shape) not in known]
        if foreign:
            raise MethodError(
                f"a LoRA adapts {foreign[0]}, which is not in the model's subspace in this size; "
                "set model.subspace.layers and projections so that it is"
            )


def join(parts: Sequence[tuple[Subspace, Tensor]], target: Subspace, weights: Sequence[float] | None = None) -> Tensor:
    """The LoRA [..., P] of `target` that does what all `parts` ([..., p] each) do together; differentiable.

    Each B is multiplied by its scale over the target's and by its weight (default 1); what is left of the rank is zero.
    Raises `MethodError` if they do not fit.
    """
    check_joins([subspace for subspace, _ in parts], target)
    lead = max((flat.shape[:-1] for _, flat in parts), key=len)
    weighted = zip(parts, weights or [1.0] * len(parts), strict=True)
    named = [(w * subspace.scaling / target.scaling, subspace.unflatten(flat)) for (subspace, flat), w in weighted]
    like = parts[-1][1]
    joined: dict[str, Tensor] = {}
    for name, inputs, outputs in target.modules:
        here = [(factor, tensors) for factor, tensors in named if f"{name}.A" in tensors]
        a = [tensors[f"{name}.A"].expand(*lead, -1, inputs) for _, tensors in here]
        b = [(factor * tensors[f"{name}.B"]).expand(*lead, outputs, -1) for factor, tensors in here]
        free = target.rank - sum(part.shape[-2] for part in a)
        joined[f"{name}.A"] = torch.cat([*a, like.new_zeros(*lead, free, inputs)], dim=-2)
        joined[f"{name}.B"] = torch.cat([*b, like.new_zeros(*lead, outputs, free)], dim=-1)
    return target.flatten(joined)
