"""The network of DyPRAG (arXiv 2503.23895): from a passage's state to the A and B of every adapted projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regrad.errors import ModelError
from regrad.models.subspace import Subspace, block_of
from regrad.training.translator.config import PerceptronsConfig


class TranslatorNetwork(nn.Module):
    """States [U, D] of passages -> LoRAs [U, P] of `subspace`.

    A = W2 ReLU(W1 [s; l]) as [rank, in] with the number l of the projection's block, and B likewise as [out, rank].
    Raises `ModelError` if projections that are to share their perceptrons have different sizes.
    """

    def __init__(self, inputs: int, subspace: Subspace, config: PerceptronsConfig, seed: int = 0) -> None:
        super().__init__()
        self.subspace = subspace
        self._groups: dict[str, list[str]] = {}
        sizes: dict[str, tuple[int, int]] = {}
        for name, *size in subspace.modules:
            # A module of torch may not have a dot in its name.
            key = name.rsplit(".", 1)[-1] if config.share == "kind" else name.replace(".", "/")
            self._groups.setdefault(key, []).append(name)
            if sizes.setdefault(key, (size[0], size[1])) != (size[0], size[1]):
                raise ModelError(
                    f"{name} has {size[0]} inputs and {size[1]} outputs, but other projections of its name have "
                    f"{sizes[key][0]} and {sizes[key][1]}, so they cannot share a network; set network.share to "
                    "none",
                    code="projections_differ",
                    module=name,
                )
        self.perceptrons = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for key, (ins, outs) in sizes.items():
                for factor, width in (("A", ins), ("B", outs)):
                    first = nn.Linear(inputs + 1, config.hidden, bias=False)
                    second = nn.Linear(config.hidden, subspace.rank * width, bias=False)
                    for layer in (first, second):
                        nn.init.normal_(layer.weight, 0.0, config.deviation)
                    self.perceptrons[f"{key}/{factor}"] = nn.Sequential(first, nn.ReLU(), second)

    def forward(self, states_UD: Tensor) -> Tensor:
        """See the class."""
        tensors: dict[str, Tensor] = {}
        for key, names in self._groups.items():
            blocks_M1 = states_UD.new_tensor([[float(block_of(name)[1])] for name in names])
            count = states_UD.shape[0]
            read_UMF = torch.cat(
                [states_UD[:, None].expand(-1, len(names), -1), blocks_M1.expand(count, -1, -1)], dim=-1
            )
            for factor in ("A", "B"):
                shape = self.subspace.shapes[f"{names[0]}.{factor}"]
                made = self.perceptrons[f"{key}/{factor}"](read_UMF).unflatten(-1, shape)
                tensors |= {f"{name}.{factor}": made[:, place] for place, name in enumerate(names)}
        return self.subspace.flatten(tensors)

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return sum(parameter.numel() for parameter in self.parameters())
