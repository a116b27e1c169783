"""The frozen blocks below the first adapted one: run once per token, without a graph, and shared by later passes.

No update in the model's own subspace reaches them, so their output is the same in every pass of a meta-training step.
A later pass runs the model as usual, but these blocks hand on what they gave before instead of computing it. Updates
in other subspaces may reach them: the engine, which applies such, runs all blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regrad.models.subspace import Subspace, block_of


class _Reached(Exception):
    """The first adapted block was reached; what it would have read is in `hidden`."""

    def __init__(self, hidden: Any) -> None:
        super().__init__("reached the first adapted block")
        self.hidden = hidden


class Blocks:
    """A model's decoder blocks, cut before the first that has an adapted projection."""

    def __init__(self, model: nn.Module, subspace: Subspace) -> None:
        self._model = model
        path, self.first = min((block_of(name) for name, _, _ in subspace.modules), key=lambda found: found[1])
        container = model.get_submodule(path)
        self.lower: list[nn.Module] = [container.get_submodule(str(i)) for i in range(self.first)]
        children = [child for name, child in container.named_children() if int(name) >= self.first]
        self.upper: list[nn.Module] = children

    def share_nothing(self) -> None:
        """From now on `enter` gives None: the upper blocks need more of the lower ones than what these hand on."""
        self.lower = []

    @torch.no_grad()
    def enter(self, ids_NT: Tensor) -> Tensor | None:
        """What the first adapted block reads [N, T, D]; None if there is nothing to share."""
        if not self.lower:
            return None

        def stop(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _Reached(positional[0] if positional else named["hidden_states"])

        handle = self.upper[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._model.base_model(input_ids=ids_NT, use_cache=False)  # type: ignore[operator]
        except _Reached as reached:
            return reached.hidden if isinstance(reached.hidden, Tensor) else None
        finally:
            handle.remove()
        return None

    @contextmanager
    def skipped(self, hidden: Tensor | None) -> Iterator[None]:
        """Inside the block, the lower blocks compute nothing and the first adapted one reads `hidden`."""
        if hidden is None:
            yield
            return
        for block in self.lower:
            block.forward = lambda *positional, **named: hidden  # type: ignore[method-assign]
        try:
            yield
        finally:
            for block in self.lower:
                del block.forward

    @contextmanager
    def recomputed(self, active: bool = True) -> Iterator[None]:
        """Inside the block, adapted blocks keep only their input and are run again in the backward pass.

        For first-order passes only; the backward pass has to be inside, too, as the update must still be applied.
        """
        if not active:
            yield
            return
        for block in self.upper:
            block.forward = _checkpointed(block.forward)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for block in self.upper:
                del block.forward


def _checkpointed(forward: Any) -> Any:
    return lambda *positional, **named: checkpoint(forward, *positional, use_reentrant=False, **named)
