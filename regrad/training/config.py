"""Settings that every training run has: how it survives, and what it reports."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from pydantic import Field

from regrad.settings import Location, Settings, WorkersConfig

Beta = Annotated[float, Field(ge=0, lt=1)]


class CheckpointConfig(Settings):
    """How a run survives."""

    every: int = Field(100, ge=1, description="steps")
    keep: int = Field(2, ge=1, description="checkpoints kept: the best by dev F1, or the newest; the newest always is")
    location: Location | None = Field(None, description="shared by all nodes; `<output>.training` if null")
    max_failures: int = Field(3, ge=0, description="lost workers that are replaced before the run gives up")
    resume: bool = Field(True, description="go on with an unfinished run of this configuration, or start afresh")


class WatchConfig(Settings):
    """What a run reports, and to whom."""

    every: int = Field(50, ge=1, description="steps")
    tensorboard: bool = True
    location: Location | None = Field(None, description="directory of the TensorBoard files; `<output>.logs` if null")
    wandb_project: str | None = Field(None, description="Weights & Biases, if it is installed")
    mlflow_experiment: str | None = Field(None, description="MLflow, if it is installed")


class TrainConfig(Protocol):
    """What the settings of every training job have, whatever it trains."""

    @property
    def output(self) -> str:
        """Where the result goes."""

    @property
    def checkpoints(self) -> CheckpointConfig:
        """How it survives."""

    @property
    def watch(self) -> WatchConfig:
        """What it reports."""

    @property
    def cluster(self) -> WorkersConfig:
        """Its workers."""

    def model_dump(self, *, mode: str, exclude: set[str] | None = None) -> dict[str, Any]:
        """All settings, as they are written down."""
