"""What a job takes of the cluster."""

from __future__ import annotations

from pydantic import Field

from regrad.settings import Settings


class WorkersConfig(Settings):
    """How much of the cluster a job takes. `gpu: null` uses GPUs when the cluster has one for each worker."""

    workers: int = Field(2, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpu: bool | None = None
