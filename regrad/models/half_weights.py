"""A model's frozen weights in bf16, which autocast would make again in every pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


@contextmanager
def autocast(lm: LanguageModel, half: bool) -> Iterator[None]:
    """A block whose matrix products are in bf16, or in the model's own data type."""
    if not half:
        yield
        return
    with torch.autocast(lm.device.type, dtype=torch.bfloat16), lm.half_weights.applied():
        yield


class HalfWeights:
    """bf16 copies of the float32 weights of a model's linear modules, which stay as they are beside them.

    Weights that are trained, or sharded and only whole inside a forward pass, have none; autocast sees to those.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [module for module in model.modules() if type(module) is nn.Linear]
        self._copies: dict[nn.Module, tuple[tuple[int, int], nn.Parameter]] = {}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block, the modules have their copies as weights: the same products as under autocast, bit by bit.

        Only for the thread that runs the model: nobody else may read its weights meanwhile.
        """
        own = {module: module.weight for module in self._modules if _copied(module.weight)}
        try:
            for module, weight in own.items():
                module.weight = self._copy(module, weight)
            yield
        finally:
            for module, weight in own.items():
                module.weight = weight

    def _copy(self, module: nn.Module, weight: Tensor) -> nn.Parameter:
        # The version counts writes in place: a copy of what is no longer there would be used in silence.
        state = (weight.data_ptr(), weight._version)
        if module not in self._copies or self._copies[module][0] != state:
            self._copies[module] = (state, nn.Parameter(weight.to(torch.bfloat16), requires_grad=False))
        return self._copies[module][1]


def _copied(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and not weight.requires_grad and not hasattr(weight, "ds_id")
