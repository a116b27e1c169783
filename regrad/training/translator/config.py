"""Settings of `regrad translator`: which adapters are learned from, by which network, and how that is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regrad.models.config import ModelConfig
from regrad.settings import Location, Settings
from regrad.training.config import ScheduleConfig, TrainConfig
from regrad.training.lora.config import AdamWConfig


class PerceptronsConfig(Settings):
    """The network: two perceptrons of two layers, without biases, one for A and one for B."""

    hidden: int = Field(32, ge=1, description="of each perceptron")
    share: Literal["kind", "none"] = Field(
        "kind",
        description="kind: all blocks' projections of one name share a pair of perceptrons, which read the block's "
        "number; none: each projection has its own, as in DyPRAG's release (which still read the number)",
    )
    deviation: float = Field(1e-7, gt=0, description="standard deviation of the first weights")


class LossConfig(Settings):
    """What the three losses of a passage count; the defaults are DyPRAG's."""

    language: float = Field(1.0, ge=0, description="mean cross-entropy of a sequence with the generated LoRA")
    divergence: float = Field(
        0.01, ge=0, description="KL divergence of its next tokens from those with the trained adapter, summed over it"
    )
    distance: float = Field(
        100.0, ge=0, description="mean squared difference of A, and of B, from the adapter's, summed over projections"
    )


class TranslatorOptimizerConfig(AdamWConfig, ScheduleConfig):
    """AdamW over the network's parameters; the defaults are DyPRAG's."""

    lr: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    epochs: float | None = Field(1.0, gt=0, description="over the sequences; null: as many as `steps` say")
    batch_size: int = Field(1, ge=1, description="sequences of one step, over all workers")
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "constant"
    precision: Literal["model"] = "model"


class TranslatorConfig(TrainConfig):
    """`regrad translator`: a network that generates a passage's LoRA from the model's state after it (DyPRAG)."""

    model: ModelConfig
    bank: Location = Field(description="of `regrad adapters`, trained on the base model alone: what is imitated")
    bank_version: int | None = Field(None, ge=1, description="the current one if null")
    corpus: Location = Field(description="the output of `regrad augment`: passages with questions about them")
    start_from: Location | None = Field(None, description="a translator of such adapters to continue")
    sequences: Literal["first", "all"] = Field(
        "first", description="of those that an adapter is trained on: a passage's first (as the release), or all"
    )
    answers: Literal["short", "full"] = Field("short", description="as `adapter.answers` was for the adapters")
    max_tokens: int = Field(3000, ge=16, description="of a passage, whose rest is cut off, and of a sequence to learn")
    scaled: bool = Field(
        True,
        description="generated LoRAs act with alpha / rank, as adapters do; false: without, as in DyPRAG's release",
    )
    network: PerceptronsConfig = PerceptronsConfig()
    losses: LossConfig = LossConfig()
    optimizer: TranslatorOptimizerConfig = TranslatorOptimizerConfig()
