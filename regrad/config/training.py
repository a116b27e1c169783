"""Meta-training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regrad.config.cluster import WorkersConfig
from regrad.config.model import ModelConfig
from regrad.settings import Location, Settings


class OptimizerConfig(Settings):
    """AdamW over phi0 and the step sizes, with linear warm-up and linear decay to zero."""

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(16, ge=1, description="task records in the global meta-batch, over all workers")
    lr: float = Field(4e-4, gt=0)
    step_size_lr: float | None = Field(None, gt=0, description="for the relative step sizes; the same as lr if null")
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(0.5, gt=0, description="the norm to which the meta-gradient is clipped")
    zero_stage: Literal[0, 1, 2] = 1


class MetaTrainConfig(Settings):
    """`regrad train`: meta-learn phi0 and the step sizes on tasks of passages, questions and answers."""

    model: ModelConfig
    tasks: Location = Field(description="jsonl of {passages, questions: [{question, answer, context}]}")
    dev: Location | None = Field(None, description="tasks of the same form, scored for exact match at the end")
    output: Location
    storage: Location | None = Field(
        None, description="where workers leave the result for the driver, shared by all nodes; beside `output` if null"
    )
    initial_step_size: float = Field(1e-2, gt=0)
    inner_reduction: Literal["mean", "sum"] = "mean"
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 0
    cluster: WorkersConfig = WorkersConfig()
    log_every: int = Field(50, ge=1)
