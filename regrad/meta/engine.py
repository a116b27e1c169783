"""DeepSpeed as the optimiser engine: ZeRO over the learned parameters, averaged gradients, clipped norm."""

from __future__ import annotations

import os
from typing import Any

import torch

from regrad.config import OptimizerConfig
from regrad.meta.loop import Engine, MetaParameters, learning_rate_factor, parameter_groups


def deepspeed_engine(parameters: MetaParameters, config: OptimizerConfig) -> Engine:
    """Wrap the learned parameters; torch.distributed must be initialised (gloo on CPUs, NCCL on GPUs).

    The parameters stay float32 whatever the base model's data type.
    """
    on_gpu = parameters.phi0.is_cuda
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    import deepspeed

    # DeepSpeed would compile a shared-memory all-reduce at the first start (a minute, and a compiler): gloo does.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimizer = torch.optim.AdamW(parameter_groups(parameters, config))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(config, step))
    engine, *_ = deepspeed.initialize(
        model=parameters,
        optimizer=optimizer,
        lr_scheduler=schedule,
        dist_init_required=False,
        config=_deepspeed_config(config),
    )
    return engine  # type: ignore[no-any-return]


def _deepspeed_config(config: OptimizerConfig) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
