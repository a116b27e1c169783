"""The frozen blocks below the first adapted one: run once per token, without a graph, and shared by later passes.

No update in the model's own subspace reaches them, so their output is the same in every pass of a meta-training step.
A later pass runs the model as usual, except that these blocks return their earlier output instead of computing it.
Updates in other subspaces may reach them: the engine, which applies those, shares them among requests without such.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regrad.errors import ModelError
from regrad.models.subspace import Subspace, block_of


class _Reached(Exception):
    """Leaves a forward pass at the first adapted block, with what that block would have read."""

    def __init__(self, hidden: Any) -> None:
        super().__init__("reached the first adapted block")
        self.hidden = hidden


class Blocks:
    """A model's decoder blocks, split before the first one that has an adapted projection."""

    def __init__(self, model: nn.Module, subspace: Subspace) -> None:
        self._model = model
        self.path, self.first = min((block_of(name) for name, _, _ in subspace.modules), key=lambda found: found[1])
        container = model.get_submodule(self.path)
        self.lower: list[nn.Module] = [container.get_submodule(str(i)) for i in range(self.first)]
        self.upper = [child for name, child in container.named_children() if int(name) >= self.first]

    def share_nothing(self) -> None:
        """From now on `enter` returns None: the upper blocks need more of the lower ones than their output."""
        self.lower = []

    def below(self, subspace: Subspace) -> bool:
        """Whether there are blocks to share that no update in this subspace reaches."""
        try:
            places = [block_of(name) for name, _, _ in subspace.modules]
        except ModelError:  # a projection that is in no block
            return False
        return bool(self.lower) and all(path == self.path and number >= self.first for path, number in places)

    @torch.no_grad()
    def enter(self, ids_NT: Tensor, **inputs: Any) -> Tensor | None:
        """What the first adapted block reads [N, T, D]; None if there is nothing to share.

        Without `inputs`, which are further ones of the model's forward pass, it keeps no keys and values.
        """
        if not self.lower:
            return None

        # An exception is the one way out of transformers' forward that spares the upper blocks and the norm.
        def stop(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _Reached(positional[0] if positional else named["hidden_states"])

        handle = self.upper[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._model.base_model(input_ids=ids_NT, **({"use_cache": False} | inputs))  # type: ignore[operator]
        except _Reached as reached:
            # Where it is read may be another device than that of `ids_NT`, with which callers choose rows of it.
            return reached.hidden.to(ids_NT.device) if isinstance(reached.hidden, Tensor) else None
        finally:
            handle.remove()
        return None

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """Inside the block, what the first adapted block reads in each pass is put into the list."""
        seen: list[Tensor] = []

        def note(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.append(positional[0] if positional else named["hidden_states"])

        handle = self.upper[0].register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield seen
        finally:
            handle.remove()

    @contextmanager
    def skipped(self, hidden: Tensor | None) -> Iterator[None]:
        """Inside the block, the lower blocks compute nothing and the first adapted one reads `hidden`."""
        if hidden is None:
            yield
            return
        # An instance's own `forward` hides the class's; deleting it brings that back.
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

        For first-order passes only. The backward pass must be inside the block, too: it needs the update applied.
        """
        if not active:
            yield
            return
        for block in self.upper:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for block in self.upper:
                del block.forward
