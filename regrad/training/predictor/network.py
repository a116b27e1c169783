"""The network of RAG-GD: from a context's state to a low-rank update of every projection.

The paper (arXiv 2605.26356, Sec 5) has an encoder of two layers and "per-layer, per-projection update heads", and does
not say what these are. One linear head each would have code * rank * (in + out) numbers a projection: 440 M for
Qwen2.5-7B at rank 16, and more than the whole base for a small one. Here a projection has a few learned directions of
its inputs and of its outputs, and all projections share one head that says how they are combined: basis * (in + out)
numbers a projection, 7.9 M in all for Qwen2.5-7B, 0.1% of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from regrad.models.subspace import Subspace
from regrad.training.predictor.config import NetworkConfig


class UpdateNetwork(nn.Module):
    """States [U, D] of contexts -> LoRAs [U, P] of `subspace`, each the update for its context.

    For projection m: A = s C_m R_m and B = s W_m D_m with its own directions R_m [basis, in] and W_m [out, basis] and
    its own scale s. The coefficients C_m and D_m [rank, basis] come from one linear head for all projections, which
    reads GELU(code * g_m + h_m) with g_m and h_m [code] of the projection.
    """

    def __init__(self, inputs: int, subspace: Subspace, config: NetworkConfig, seed: int = 0) -> None:
        super().__init__()
        self.subspace = subspace
        self._shape = (2, subspace.rank, config.basis)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(
                nn.Linear(inputs, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.code)
            )
            count = len(subspace.modules)
            self.gain = nn.Parameter(1 + torch.randn(count, config.code) / math.sqrt(config.code))
            self.shift = nn.Parameter(torch.randn(count, config.code) / math.sqrt(config.code))
            self.head = nn.Linear(config.code, math.prod(self._shape))
            # Directions of unit length in expectation, so that all projections begin alike whatever their sizes.
            sizes = [(config.basis, size) for _, size, _ in subspace.modules]
            self.read = nn.ParameterList(torch.randn(size) / math.sqrt(size[1]) for size in sizes)
            sizes = [(size, config.basis) for _, _, size in subspace.modules]
            self.write = nn.ParameterList(torch.randn(size) / math.sqrt(size[0]) for size in sizes)
        self.log_scale = nn.Parameter(torch.zeros(count))

    def forward(self, states_UD: Tensor) -> Tensor:
        """See the class."""
        # Of the states only the direction is read: their size differs a lot between models.
        code_UC = self.encoder(functional.layer_norm(states_UD, states_UD.shape[-1:]))
        read_UMC = functional.gelu(code_UC[:, None] * self.gain + self.shift)
        coefficients = self.head(read_UMC).unflatten(-1, self._shape) * self.log_scale.exp()[:, None, None, None]
        tensors = {}
        for number, (name, _, _) in enumerate(self.subspace.modules):
            tensors[f"{name}.A"] = coefficients[:, number, 0] @ self.read[number]
            tensors[f"{name}.B"] = self.write[number] @ coefficients[:, number, 1].mT
        return self.subspace.flatten(tensors)

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return sum(parameter.numel() for parameter in self.parameters())
