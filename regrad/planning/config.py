"""Settings of `regrad plan`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from regrad.data.question_sets import QuestionSetConfig
from regrad.settings import Location, Settings, invalid


class MachineConfig(Settings):
    """What the server may use; null: all that this machine has."""

    cores: int | None = Field(None, ge=1)
    gpus: int | None = Field(None, ge=0)
    memory_bytes: int | None = Field(None, ge=1)
    gpu_bytes: int | None = Field(None, ge=1, description="memory of each GPU")


class MeasuringConfig(Settings):
    """How a profile is measured."""

    batches: tuple[int, ...] = Field((1, 2, 4, 8, 16, 32), min_length=1, description="batch sizes of each stage")
    repeats: int = Field(5, ge=1, description="minimum number of repetitions of each batch size; the fastest counts")
    users: tuple[int, ...] = Field(
        (1, 4, 8, 32, 64), min_length=1, description="concurrent users to measure, one load after another"
    )
    seconds: float = Field(8.0, gt=0, description="duration of each load")

    @model_validator(mode="after")
    def _rising(self) -> MeasuringConfig:
        for name in ("batches", "users"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)) or values[0] != 1:
                raise invalid("not_rising", f"{name} begin with 1 and rise, found {list(values)}")
        return self


class PlanConfig(Settings):
    """`regrad plan`: profile a server's stages, search, choose, and write its configuration."""

    serve: dict[str, Any] = Field(
        description="the configuration of `regrad serve` to start from, usually the name of a .yaml file"
    )
    output: Location = Field(description="a directory for profile.json, plan.json and serve.yaml")
    profile: Location | None = Field(None, description="a profile.json of an earlier run; null: measure now")
    questions: QuestionSetConfig = Field(description="what is asked while measuring")
    method: str = Field("regrad", description="one of the server's methods")
    k: int = Field(3, ge=1)
    max_new_tokens: int = Field(20, ge=1)
    machine: MachineConfig = MachineConfig()
    users: int = Field(16, ge=1, description="concurrent users; each asks again as soon as the answer is there")
    bound_ms: float | None = Field(
        None, gt=0, description="limit of the predicted median latency; null: only the rate of answers counts"
    )
    most_replicas: int = Field(4, ge=1, description="maximum number of replicas of a deployment that the search tries")
    most_rows: int = Field(64, ge=1, description="largest batch.max_size that the search tries")
    change_embedded: bool = Field(
        True,
        description="also measure and search the server with `embedded` the other way; false: only as the serve "
        "configuration has it, for instance because several machines serve",
    )
    measuring: MeasuringConfig = MeasuringConfig()
    check: bool = Field(False, description="run the chosen and the given configuration under load afterwards")
    check_seconds: float = Field(15.0, gt=0, description="duration of each load of the check")
    check_turns: int = Field(1, ge=1, description="repetitions of the check; the medians are reported")
