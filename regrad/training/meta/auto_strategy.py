"""`auto`: the fastest strategy whose estimated memory fits, measured on a short pass of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from regrad.errors import ConfigError
from regrad.gradients.extractor import passage_gradients
from regrad.models.batching import TokenBatch
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import MetaBatch
from regrad.training.meta.config import InnerConfig, StrategyConfig, StrategyName
from regrad.training.meta.objective import Point, shared
from regrad.training.meta.strategies import Strategy, make_strategy

BY_MEMORY: tuple[StrategyName, ...] = ("graph", "hvp", "difference", "first-order")
"""All strategies, each with less memory than the one before."""

_WHOLE = 2**62
_MARGIN = 1.3  # for what autograd frees late, fragmentation, and batches longer than the first


@dataclass(frozen=True)
class StrategyBytes:
    """Bytes that each strategy would need beyond the model, for one batch; `graph` is also the fastest."""

    graph: float
    hvp: float
    difference: float


def choose_strategy(
    lm: LanguageModel,
    at: Point,
    batch: MetaBatch | None,
    config: StrategyConfig,
    inner: InnerConfig,
    workers_here: int = 1,
    layer_wise: bool = False,
) -> tuple[Strategy, str]:
    """The strategy for batches like this one, and a sentence that says which and why.

    `workers_here` share the memory of this machine; each has a GPU of its own, if any.
    """
    if layer_wise:
        # Workers gather the weights together, so all of them have to make the same passes whatever their batches.
        config = config.model_copy(update={"chunk_tokens": _WHOLE})
    if config.name != "auto":
        return make_strategy(config, inner), f"strategy {config.name}, as configured"
    if inner.steps > 1:
        return _made("graph", config, inner), "strategy graph: the only one for several inner steps"
    if layer_wise:
        reason = "strategy difference: the only one of second order with sharded weights"
        if lm.compute_dtype == torch.bfloat16:
            reason += "; differences are coarse in bf16, watch their estimated error"
        return _made("difference", config, inner), reason
    if batch is None:
        raise ConfigError("strategy auto needs a batch to choose by", code="strategy_not_chosen")
    sharing = 1 if lm.device.type == "cuda" else workers_here
    free = config.memory_gb * 1e9 if config.memory_gb else 0.8 * free_bytes(lm.device) / sharing
    estimate = estimate_memory(lm, at, batch, config.chunk_tokens, inner.reduction)
    needs = asdict(estimate)  # in the order of speed
    name = next((name for name, need in needs.items() if need <= free), "difference")
    estimates = ", ".join(f"{name} {need / 1e9:.2f}" for name, need in needs.items())
    return _made(name, config, inner), f"strategy {name}: estimated GB {estimates}; {free / 1e9:.2f} may be used"


def _made(name: str, config: StrategyConfig, inner: InnerConfig) -> Strategy:
    return make_strategy(config.model_copy(update={"name": name}), inner)


def free_bytes(device: torch.device) -> int:
    """Free memory of the device, or of this machine for the CPU."""
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def estimate_memory(
    lm: LanguageModel, at: Point, batch: MetaBatch, chunk_tokens: int, reduction: str = "mean"
) -> StrategyBytes:
    """Extrapolated from the activations that one passage keeps, per padded token, for one backward pass and for two."""
    batch = shared(lm, batch)
    probe = batch.passages.take(batch.passages.lengths.argmax().reshape(1))
    once = saved_bytes(lm, lambda: _pass(lm, at, probe, reduction, False)) / probe.ids.numel()
    twice = saved_bytes(lm, lambda: _pass(lm, at, probe, reduction, True)) / probe.ids.numel()
    passages, questions = batch.passages.ids.numel(), batch.questions.ids.numel()
    chunk = min(max(chunk_tokens, batch.passages.ids.shape[1]), passages)
    question_chunk = min(max(chunk_tokens, batch.questions.ids.shape[1]), questions)
    vector = at.phi0.numel() * at.phi0.element_size()
    updates, rows = batch.membership.shape
    in_chunk = max(1, chunk // batch.passages.ids.shape[1])
    kept = vector * (4 * updates + 4)
    return StrategyBytes(
        graph=_MARGIN * (twice * passages + once * questions + vector * (2 * rows + 4 * updates)),
        hvp=_MARGIN * (max(twice * chunk, once * question_chunk) + kept + vector * 3 * in_chunk),
        difference=_MARGIN * (once * max(chunk, question_chunk) + kept + vector * 3 * in_chunk),
    )


def _pass(lm: LanguageModel, at: Point, probe: TokenBatch, reduction: str, create_graph: bool) -> Tensor:
    phi = at.phi0.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext():
        return passage_gradients(lm, phi, probe, reduction, create_graph)[0]


def saved_bytes(lm: LanguageModel, run: Callable[[], Any]) -> int:
    """Bytes of the distinct tensors that autograd keeps during `run`, without the model's own weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in lm.model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()
    del kept
    return sum(seen.values())
