"""Optimiser engines: what turns each worker's meta-gradient into one step of all workers."""

from __future__ import annotations

from regrad.models.loading import LanguageModel
from regrad.training.meta.config import OptimizerConfig
from regrad.training.meta.optim.base import Engine, PlainEngine
from regrad.training.meta.parameters import MetaParameters


def make_engine(lm: LanguageModel, parameters: MetaParameters, config: OptimizerConfig) -> Engine:
    """DeepSpeed at the configured ZeRO stage, or plain PyTorch; torch.distributed must be initialised for DeepSpeed."""
    if config.zero_stage is None:
        return PlainEngine(parameters, config)
    from regrad.training.meta.optim.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(lm, parameters, config)
