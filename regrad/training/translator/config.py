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

    hidden: int = Field(32, ge=1, description="width of each perceptron's hidden layer")
    share: Literal["kind", "none"] = Field(
        "kind",
        description="kind: all blocks' projections of one name share a pair of perceptrons, which read the block's "
        "number; none: each projection has its own, as in DyPRAG's code (which still read the number)",
    )
    deviation: float = Field(1e-7, gt=0, description="standard deviation of the first weights")


class LossConfig(Settings):
    """The weights of a passage's three losses; the defaults are DyPRAG's."""

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
    epochs: float | None = Field(1.0, gt=0, description="passes over the sequences; null: as many as `steps` make")
    batch_size: int = Field(1, ge=1, description="sequences per step, over all workers")
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "constant"
    precision: Literal["model"] = "model"


class TranslatorConfig(TrainConfig):
    """`regrad translator`: a network that generates a passage's LoRA from the model's state after it (DyPRAG)."""

    model: ModelConfig
    bank: Location = Field(
        description="the adapters to imitate: a bank of `regrad adapters`, trained on the base model alone"
    )
    bank_version: int | None = Field(None, ge=1, description="the current one if null")
    corpus: Location = Field(description="the output of `regrad augment`: passages with questions about them")
    start_from: Location | None = Field(None, description="a translator of the same kind of adapters, to continue from")
    sequences: Literal["first", "all"] = Field(
        "first",
        description="which of the adapter's training sequences to use: the first of each passage (as in the authors' "
        "code), or all",
    )
    answers: Literal["short", "full"] = Field("short", description="the same as `adapter.answers` of the adapters")
    max_tokens: int = Field(3000, ge=16, description="limit for passages (truncated) and for training sequences")
    scaled: bool = Field(
        True,
        description="scale generated LoRAs by alpha / rank, as adapters are; false: do not, as in DyPRAG's code",
    )
    network: PerceptronsConfig = PerceptronsConfig()
    losses: LossConfig = LossConfig()
    optimizer: TranslatorOptimizerConfig = TranslatorOptimizerConfig()
