"""Settings of `regrad predictor`: which context steps are predicted, by which network, and how that is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regrad.models.config import ModelConfig
from regrad.settings import Location, Settings
from regrad.training.config import ScheduleConfig, TrainConfig
from regrad.training.lora.config import AdamWConfig, SgdConfig

UpdateSpace = Literal["factors", "products"]
"""Where an update lives: in the numbers of a LoRA's A and B, or in the matrices B A that they stand for."""


PredictorObjective = Literal["steps", "answers"]
"""What a predictor is trained for: to give what gradient steps on a context give (RAG-GD), or to make the answer to
another question likely (HyperTuning)."""


class StepsConfig(SgdConfig):
    """The gradient steps on a context's demonstrations: the update that is predicted (TT-SGD)."""

    steps: int = Field(5, ge=1, le=1000, description="K, the number of gradient steps, each on all demonstrations")


class ContextConfig(Settings):
    """What a context is, and how its demonstrations are written."""

    demonstrations: int = Field(3, ge=1, le=1000, description="N, the number of solved questions in a context")
    k: int | None = Field(
        None, ge=1, description="maximum number of passages in a demonstration's prompt; all of its own if null"
    )
    max_tokens: int = Field(
        1536, ge=16, description="limit for one demonstration; its worst passages are dropped until it fits"
    )


class NetworkConfig(Settings):
    """The network: an encoder of two layers, and heads that share one table of coefficients over all projections."""

    hidden: int = Field(256, ge=1, description="width of the encoder's first layer")
    code: int = Field(64, ge=1, description="width of the second layer, the heads' input")
    basis: int = Field(16, ge=1, description="rank of the predicted update's input and output bases")
    largest_share: float = Field(
        0.1,
        gt=0,
        description="share of the base model's parameters; a larger network is refused before training",
    )


class PredictorOptimizerConfig(AdamWConfig, ScheduleConfig):
    """AdamW over the network's parameters; the defaults are RAG-GD's."""

    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    clip: float | None = Field(1.0, gt=0, description="maximum norm of the gradient")
    steps: int = Field(3000, ge=1)
    batch_size: int = Field(4, ge=1, description="contexts per step, over all workers")
    precision: Literal["model"] = "model"


class PredictorConfig(TrainConfig):
    """`regrad predictor`: a network that predicts an update of a LoRA from solved questions (RAG-GD, HyperTuning)."""

    model: ModelConfig
    adapter: Location = Field(
        description="W0, a LoRA of `regrad finetune` (objective questions-with-passages); the update's own subspace"
    )
    tasks: tuple[Location, ...] = Field(
        min_length=1, description="questions, as for `regrad train`; the demonstrations of a context are of one of them"
    )
    objective: PredictorObjective = Field(
        "steps",
        description="steps: the update is that of `inner` on the context (RAG-GD); answers: it lowers the loss on the "
        "answer to another question of the same file (HyperTuning)",
    )
    contexts: int = Field(
        4096, ge=1, description="number of different contexts, drawn by the seed; further draws start over"
    )
    context: ContextConfig = ContextConfig()
    inner: StepsConfig = StepsConfig()
    remember: int = Field(
        256, ge=0, description="contexts whose steps a worker keeps in memory (4 bytes a number of W0 each)"
    )
    space: UpdateSpace = Field(
        "factors", description="where the update lives and is compared; factors: W0's own numbers; products: B A"
    )
    norm_weight: float = Field(
        0.1,
        ge=0,
        description="lambda: weight of the difference of log norms, relative to the direction's (objective: steps)",
    )
    network: NetworkConfig = NetworkConfig()
    optimizer: PredictorOptimizerConfig = PredictorOptimizerConfig()
