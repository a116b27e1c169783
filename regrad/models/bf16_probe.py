"""A program of its own: are matrix products in bf16 right on this processor, and faster than in float32?

Prints one line of JSON. It imports nothing of regrad, since `precision.py` runs it in a child process: on a processor
without the instructions that a library believes to be there, the first product ends the process.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS, _INPUTS, _OUTPUTS, _RANK = 256, 576, 1536, 16
_REPEATS = 7


def _layer(x_NTD: Tensor, weight_OD: Tensor, a_URD: Tensor, b_UOR: Tensor) -> Tensor:
    """A frozen projection and a low-rank update for each row, as in a step of meta-training."""
    low = torch.bmm(x_NTD, a_URD.mT)
    return F.linear(x_NTD, weight_OD) + torch.bmm(low, b_UOR.mT)


def _gradients(layer: tuple[Tensor, ...]) -> list[Tensor]:
    """Of a sum of squares, by all that is not frozen, and of the norm of those once more."""
    x_NTD, weight_OD, *update = layer
    leaves = [tensor.detach().requires_grad_() for tensor in (x_NTD, *update)]
    output = _layer(leaves[0], weight_OD, leaves[1], leaves[2]).float()
    first = torch.autograd.grad(output.square().mean(), leaves, create_graph=True)
    second = torch.autograd.grad(sum((g.float().square().sum() for g in first), torch.zeros(())), leaves)
    return [output.detach(), *(g.detach().float() for g in (*first, *second))]


def _seconds(layer: tuple[Tensor, ...], half: bool) -> float:
    """The least of several runs, in seconds of the processor: other programs of a busy machine do not count."""
    found = []
    for _ in range(_REPEATS):
        started = time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            _gradients(layer)
        found.append(time.process_time() - started)
    return min(found)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, _ROWS, _INPUTS), (_OUTPUTS, _INPUTS), (2, _RANK, _INPUTS), (2, _OUTPUTS, _RANK))
    layer = tuple(torch.randn(size, generator=generator) / size[-1] ** 0.5 for size in sizes)
    exact = _gradients(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = _gradients(layer)
    error = max(float((r - e).norm() / e.norm()) for r, e in zip(rough, exact, strict=True))
    speedup = _seconds(layer, half=False) / _seconds(layer, half=True)
    json.dump({"error": error if error == error else 1e9, "speedup": speedup}, sys.stdout)  # NaN is no JSON


if __name__ == "__main__":
    main()
