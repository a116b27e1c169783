"""Settings of meta-training: `regrad train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from regrad.evaluation.metrics import Rules
from regrad.models.config import ActsOn, ModelConfig
from regrad.settings import Location, Settings, invalid
from regrad.training.config import Beta, ScheduleConfig, TrainConfig

StrategyName = Literal["auto", "graph", "hvp", "difference", "first-order"]
StepSizeMode = Literal["tie", "same", "full", "fix"]


class InnerConfig(Settings):
    """The inner step: phi_C = phi0 - alpha * sum of the passages' gradients (paper, eq. 1 to 3)."""

    initial_step_size: float = Field(
        1e-2, gt=0, description="initial value of alpha; the right scale depends on the model"
    )
    step_size_mode: StepSizeMode = Field(
        "tie",
        description="one step size per tensor (tie), for all (same) or per number (full), or not learned (fix)",
    )
    step_size_space: Literal["linear", "absolute", "log"] = Field(
        "linear",
        description="what the optimiser changes: alpha / initial_step_size (linear), alpha itself (absolute, as in the "
        "authors' code), or the logarithm of alpha / initial_step_size (log)",
    )
    reduction: Literal["mean", "sum"] = Field("mean", description="how a passage's token losses become its loss")
    steps: int = Field(
        1, ge=1, description="inner steps; with more than one there can be no bank, and the strategy must be graph"
    )
    acts_on: ActsOn = Field(
        "everything",
        description="the tokens that an update acts on: everything, or answer: the base model alone reads the prompt, "
        "and the update acts from its last token on",
    )


class StrategyConfig(Settings):
    """How the meta-gradient is computed. All but `first-order` (an ablation) give the same numbers."""

    name: StrategyName = "auto"
    chunk_tokens: int = Field(512, ge=1, description="hvp, difference: padded tokens in one pass (at least one row)")
    memory_gb: float | None = Field(None, gt=0, description="auto: memory for one worker; 80% of what is free if null")
    relative_step: float | None = Field(None, gt=0, description="difference: step length relative to |phi0|")
    activation_checkpointing: bool = Field(False, description="difference, first-order: recompute blocks")


class ShapeConfig(Settings):
    """How a task is shaped before it is trained on."""

    MOVED: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"order": ("/model.prompts.order", "shuffled")}

    k: int | None = Field(None, ge=1, description="maximum number of passages of a question: the first of its context")
    questions: int | None = Field(
        None, ge=1, description="maximum number of questions of a task, drawn again for each draw"
    )
    in_prompt: bool = Field(False, description="passages also in the prompt of the outer loss: ReGrad + ICL")
    in_prompt_probability: float = Field(
        1.0,
        ge=0,
        le=1,
        description="with in_prompt: the share of draws whose prompts have them; below 1 a start for both, ReGrad and "
        "ReGrad + ICL",
    )
    shuffled: bool = Field(False, description="passages in a random order in the prompt, drawn again each time")
    distractors: int = Field(2, ge=0, description="passages of other tasks added behind a question's own")
    distractor_probability: float = Field(0.0, ge=0, le=1, description="the share of draws that get distractors")
    max_passage_tokens: int = Field(1024, ge=8)
    max_tokens: int = Field(1536, ge=16, description="limit for prompt and answer together")
    bad_tasks: Literal["fail", "skip"] = Field("fail", description="stop at a bad task, or skip and count it")


class TaskSource(Settings):
    """One set of tasks (jsonl or parquet, a file or a directory) and its share of the draws."""

    uri: Location
    weight: float | None = Field(None, gt=0, description="relative to the other sets; the number of its tasks if null")


def _as_sources(value: Any) -> Any:
    items = [value] if isinstance(value, str | dict) else value
    return [{"uri": item} if isinstance(item, str) else item for item in items] if isinstance(items, list) else value


TaskSources = Annotated[tuple[TaskSource, ...], BeforeValidator(_as_sources), Field(min_length=1)]
"""A location, or a list of locations or of {uri, weight}: domains that are mixed."""


def _as_locations(value: Any) -> Any:
    return () if value is None else (value,) if isinstance(value, str) else value


DevSets = Annotated[tuple[Location, ...], BeforeValidator(_as_locations)]
"""A location, or a list of locations: sets that count alike, however many questions each has."""


class OptimizerConfig(ScheduleConfig):
    """AdamW over phi0 and the step sizes."""

    micro_batch: int | None = Field(
        None, ge=1, description="tasks that a worker computes at once; its whole share if null"
    )
    lr: float = Field(4e-4, gt=0)
    step_size_lr: float | None = Field(
        None, gt=0, description="learning rate of the step sizes, in their space; null: the same as lr"
    )
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0, description="weight decay of phi0")
    step_size_weight_decay: float = Field(0.0, ge=0, description="weight decay of the step sizes, in their space")
    clip: float = Field(0.5, gt=0, description="maximum norm of the meta-gradient")
    zero_stage: Literal[0, 1, 2, 3] | None = Field(1, description="DeepSpeed's ZeRO stage; null: plain PyTorch DDP")


class ReadingConfig(Settings):
    """Whether the model uses the passages: the outer loss on dev tasks with the right ones, another task's, and none.

    If the first two stay together, the run has learned the task and not to use the passages, and says so once.
    """

    tasks: int = Field(
        64, ge=0, description="maximum number of tasks of each dev set to measure at every dev score; 0: do not measure"
    )
    least_gap: float = Field(
        0.05, ge=0, description="nats that another task's passages must cost; a smaller gap leads to the warning"
    )
    patience: int = Field(
        3, ge=1, description="number of consecutive dev scores with too small a gap before the warning"
    )


class DevConfig(Settings):
    """How a run is scored on its dev tasks."""

    every: int | None = Field(None, ge=1, description="steps between dev scores; null: only at the end")
    gamma: float = Field(1.0, gt=0, description="scale of the update (inference only)")
    max_new_tokens: int = Field(20, ge=1)
    rules: Rules = Field("squad", description="whose F1: SQuAD's, or HotpotQA's as in the authors' code")
    select: Literal["best", "last"] = Field("best", description="which checkpoint becomes the result")
    reading: ReadingConfig = ReadingConfig()


class MetaTrainConfig(TrainConfig):
    """`regrad train`: meta-learn phi0 and the step sizes on tasks of passages, questions and answers."""

    model: ModelConfig
    tasks: TaskSources
    dev: DevSets = Field((), description="sets of tasks in the same format; a score is the mean of the sets' EM and F1")
    start_from: Location | None = Field(None, description="a MetaInit to continue, for example on another domain")
    inner: InnerConfig = InnerConfig()
    strategy: StrategyConfig = StrategyConfig()
    shape: ShapeConfig = ShapeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    scoring: DevConfig = DevConfig()

    @model_validator(mode="after")
    def _possible(self) -> MetaTrainConfig:
        strategy = self.strategy
        if self.inner.steps > 1 and strategy.name not in ("auto", "graph"):
            raise invalid("steps_need_graph", f"inner.steps above 1 needs strategy.name graph, found {strategy.name}")
        if strategy.activation_checkpointing and strategy.name not in ("difference", "first-order"):
            raise invalid(
                "checkpointing_unsupported",
                "strategy.activation_checkpointing needs strategy.name difference or first-order",
            )
        if self.optimizer.zero_stage == 3 and strategy.name not in ("auto", "difference", "first-order"):
            raise invalid(
                "sharding_unsupported",
                f"optimizer.zero_stage 3 needs strategy.name difference (or first-order), found {strategy.name}: "
                "DeepSpeed frees the sharded weights before the second backward pass",
            )
        if self.inner.steps > 1 and self.optimizer.zero_stage == 3:
            raise invalid("steps_need_whole_weights", "inner.steps above 1 needs optimizer.zero_stage below 3")
        return self
