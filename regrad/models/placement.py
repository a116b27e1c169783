"""A base model split over several devices: which blocks are where, and how what they read gets from one to the next.

All that is not in a block (embeddings, norm, vocabulary) is on the first device, and so are a pass's inputs and its
final states; only what is computed inside a block has to know where that block is. The blocks compute one after the
other, so two devices hold a model of twice the size and are no faster than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from regrad.errors import ModelError
from regrad.models.architectures import architecture_of
from regrad.models.subspace import Subspace
from regrad.text import counted, listed

DeviceMap = dict[str, torch.device]
"""Modules and parameters of a model, none inside another, to their devices: what transformers calls a device map."""


def device_map_of(config: Any, devices: Sequence[torch.device]) -> DeviceMap:
    """Where to load a model of this configuration: its blocks on all `devices` in order, all else on the first.

    So that the device with the most weights has as few as possible. Raises `ModelError` for more devices than blocks.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    path, blocks = architecture_of(model).block_list(model)
    if len(devices) > len(blocks):  # type: ignore[arg-type]
        count = len(blocks)  # type: ignore[arg-type]
        raise ModelError(
            f"a model of {counted(count, 'block')} was given {len(devices)} GPUs, and each holds whole blocks; give "
            "it fewer",
            code="too_many_devices",
            blocks=count,
            devices=len(devices),
        )
    sizes = [_numbers(block) for block in blocks.children()]
    places = stages(sizes, _numbers(model) - sum(sizes), len(devices))
    inside = {f"{path}.{number}": devices[place] for number, place in enumerate(places)}
    return dict.fromkeys(_beside(model, path), devices[0]) | inside


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _beside(model: nn.Module, path: str) -> list[str]:
    """The modules and parameters that the blocks at `path` are not in, each as whole as it can be named."""
    parts = path.split(".")
    around = [".".join(parts[:length]) for length in range(len(parts) + 1)]
    found: list[str] = []
    for outer in around[:-1]:
        module = model.get_submodule(outer)
        own = [name for name, _ in module.named_parameters(recurse=False)]
        own += [name for name, _ in module.named_buffers(recurse=False)]
        named = [f"{outer}.{name}".lstrip(".") for name in (*own, *dict(module.named_children()))]
        found += [name for name in named if name not in around]
    return found


def stages(sizes: Sequence[int], beside: int, devices: int) -> list[int]:
    """For blocks of these sizes the number of the device of each, in order; the first device also has `beside`.

    The fullest device has as little as possible.
    """
    least, most = max([beside, *sizes]), beside + sum(sizes)
    while least < most:
        middle = (least + most) // 2
        if _filled(sizes, beside, middle)[-1] < devices:
            most = middle
        else:
            least = middle + 1
    return _filled(sizes, beside, least)


def _filled(sizes: Sequence[int], beside: int, room: int) -> list[int]:
    """The device of each block if one device after the other is filled up to `room`."""
    places: list[int] = []
    place, load = 0, beside
    for size in sizes:
        if load + size > room:
            place, load = place + 1, 0
        load += size
        places.append(place)
    return places


def connect(model: nn.Module) -> None:
    """From now on what a block reads comes to its device, and what the last block gives goes back to the first device.

    In place of accelerate's own hooks, which move the arguments of each single module inside the blocks, too.
    """
    remove_hook_from_submodules(model)
    _, blocks = architecture_of(model).block_list(model)
    inner = list(blocks.children())
    entrance = model.get_input_embeddings().weight.device  # type: ignore[operator]
    moved = _Moved()
    for block in inner:
        # accelerate leaves the method as an attribute of the instance, where `Blocks` puts its own.
        block.__dict__.pop("forward", None)
        if block is inner[0]:
            block.register_forward_pre_hook(moved.forget)
        block.register_forward_pre_hook(moved.entering(device_of(block)), with_kwargs=True)
    inner[-1].register_forward_hook(lambda block, inputs, output: send_to_device(output, entrance))


class _Moved:
    """What all blocks read, such as masks and the factors of positions, on each device once a pass."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, torch.device], tuple[Any, Any]] = {}

    def forget(self, block: nn.Module, inputs: Any) -> None:
        self._kept.clear()

    def entering(self, device: torch.device) -> Callable[..., Any]:
        """A hook of a block on this device, before its forward pass."""

        def bring(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            # The hidden states, first or by name, are another block's each time, and nothing keeps them.
            return (
                tuple(self._brought(value, device, keep=place > 0) for place, value in enumerate(inputs)),
                {name: self._brought(value, device, keep=name != "hidden_states") for name, value in named.items()},
            )

        return bring

    def _brought(self, value: Any, device: torch.device, keep: bool) -> Any:
        if not isinstance(value, Tensor | tuple | list | dict):  # a cache, whose parts are where their blocks are
            return value
        if not keep:
            return send_to_device(value, device)
        key = id(value), device
        if key not in self._kept:
            # With the value itself, so that no other gets its id.
            self._kept[key] = value, send_to_device(value, device)
        return self._kept[key][1]


@contextmanager
def fitting(name: str, devices: Sequence[torch.device]) -> Iterator[None]:
    """Inside the block, `ModelError` is raised if the weights of the checkpoint `name` do not fit on these devices."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"the weights of {name} do not fit in the memory of {listed(list(map(str, devices)), 8)}; free it, or use "
            "larger GPUs or more of them",
            code="out_of_memory",
            path=name,
            devices=list(map(str, devices)),
        ) from error


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are; of a block, whose parts are never apart, where it is."""
    return next(module.parameters()).device


@dataclass(frozen=True)
class DevicePart:
    """What of a subspace is on one device: the modules there as a subspace, and their places in its vector."""

    device: torch.device
    subspace: Subspace
    slices: tuple[slice, ...]

    def of(self, vector_P: Tensor) -> Tensor:
        """This part [p] of a vector, as it is where it is."""
        pieces = [vector_P[each] for each in self.slices]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def parts_of(model: nn.Module, subspace: Subspace) -> list[DevicePart]:
    """The parts of a subspace by device; for a model on one device it is the only part."""
    places = [device_of(model.get_submodule(name)) for name, _, _ in subspace.modules]
    sizes = [subspace.rank * (inputs + outputs) for _, inputs, outputs in subspace.modules]
    runs: dict[torch.device, list[tuple[list[Any], slice]]] = {}
    start = 0
    for device, grouped in groupby(zip(places, subspace.modules, sizes, strict=True), key=lambda each: each[0]):
        run = list(grouped)
        stop = start + sum(size for _, _, size in run)
        runs.setdefault(device, []).append(([module for _, module, _ in run], slice(start, stop)))
        start = stop
    if len(runs) == 1:
        return [DevicePart(places[0], subspace, (slice(None),))]
    parts = []
    for device, found in runs.items():
        modules = tuple(module for of, _ in found for module in of)
        own = Subspace(modules, subspace.rank, subspace.scaling)
        parts.append(DevicePart(device, own, tuple(place for _, place in found)))
    return parts
