"""A base model that is sharded over the workers of a training while it is loaded, by DeepSpeed's ZeRO 3.

transformers reads a checkpoint so that each worker keeps its part of every weight as soon as it is read; the first
worker alone reads the files. Until a training engine sees to it, a module's own weights are whole while it runs, and
`whole` makes one whole anywhere else. All of that is collective: every worker does it, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def deepspeed_on(device: torch.device) -> Any:
    """The library, set up for this kind of device."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    import deepspeed

    # DeepSpeed would compile a shared-memory all-reduce at the first start (a minute, and a compiler): gloo does.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def loading_sharded(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block transformers shards what it loads. torch.distributed must be initialised."""
    deepspeed_on(device)
    from transformers.integrations import HfDeepSpeedConfig

    half = {"bf16": {"enabled": True}} if dtype == torch.bfloat16 else {}
    settings = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, **half})
    try:
        yield
    finally:
        del settings  # transformers asks whether it is still there


def whole_shape(weight: Tensor) -> torch.Size:
    """A weight's shape, that of all shards together."""
    shape: torch.Size = getattr(weight, "ds_shape", weight.shape)
    return shape


def whole(weight: Tensor) -> AbstractContextManager[None]:
    """Inside the block a weight that is sharded is whole, to be read."""
    if not hasattr(weight, "ds_id"):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters([weight])
    return gathered


def gather_in_passes(model: nn.Module) -> list[RemovableHandle]:
    """Hooks by which each module's own weights are whole while it runs; to be removed when an engine takes over."""
    handles: list[RemovableHandle] = []
    running: dict[nn.Module, AbstractContextManager[None]] = {}

    def gather(module: nn.Module, inputs: Any) -> None:
        import deepspeed

        running[module] = deepspeed.zero.GatheredParameters(list(module.parameters(recurse=False)))
        running[module].__enter__()

    def shard(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop(module).__exit__(None, None, None)

    for module in model.modules():
        if any(hasattr(weight, "ds_id") for weight in module.parameters(recurse=False)):
            handles.append(module.register_forward_pre_hook(gather))
            # Also after an error: whoever tries whether a model can be run goes on with it.
            handles.append(module.register_forward_hook(shard, always_call=True))
    return handles
