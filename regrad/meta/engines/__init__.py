"""Optimiser engines: what turns each worker's meta-gradient into one step of all workers."""

from __future__ import annotations

from regrad.config import OptimizerConfig
from regrad.language_model.loading import LanguageModel
from regrad.meta.engines.base import Engine
from regrad.meta.engines.plain import PlainEngine
from regrad.meta.parameters import MetaParameters

__all__ = ["Engine", "PlainEngine", "make_engine"]


def make_engine(lm: LanguageModel, parameters: MetaParameters, config: OptimizerConfig) -> Engine:
    """DeepSpeed at the configured ZeRO stage, or plain PyTorch; torch.distributed must be initialised for DeepSpeed."""
    if config.zero_stage is None:
        return PlainEngine(parameters, config)
    from regrad.meta.engines.deep_speed import DeepSpeedEngine

    return DeepSpeedEngine(lm, parameters, config)
