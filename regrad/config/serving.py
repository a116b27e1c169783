"""The serving application."""

from __future__ import annotations

from pydantic import Field, model_validator

from regrad.config.bank import RetrieverConfig, TiersConfig
from regrad.config.model import ModelPath
from regrad.settings import Location, Settings


class ReplicaConfig(Settings):
    """One deployment of the server: how many replicas, what each takes, how many requests it holds."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    num_cpus: float = Field(0.25, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    max_ongoing_requests: int = Field(128, ge=1)
    max_queued_requests: int = Field(1024, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaConfig:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is above max_replicas")
        return self


class LimitsConfig(Settings):
    """What one request may ask for."""

    max_k: int = Field(10, ge=1)
    max_gamma: float = Field(10.0, gt=0)
    max_new_tokens: int = Field(64, ge=1)
    max_question_characters: int = Field(4096, ge=1)
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    request_seconds: float = Field(60.0, gt=0)


class BatchConfig(Settings):
    """How requests are gathered into one decoding batch."""

    max_size: int = Field(32, ge=1)
    wait_seconds: float = Field(0.005, ge=0)


class ServeConfig(Settings):
    """The serving application: `args` of `configs/serve/*.yaml`."""

    meta_init: Location
    model_path: ModelPath | None = None
    bank: Location
    tiers: TiersConfig = TiersConfig()
    index: Location
    retrieval: RetrieverConfig = RetrieverConfig()
    limits: LimitsConfig = LimitsConfig()
    batch: BatchConfig = BatchConfig()
    retriever: ReplicaConfig = ReplicaConfig()
    bank_loader: ReplicaConfig = ReplicaConfig()
    generator: ReplicaConfig = ReplicaConfig(num_cpus=0.5)
    gateway: ReplicaConfig = ReplicaConfig()


class HttpConfig(Settings):
    """Where the HTTP proxy listens."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
