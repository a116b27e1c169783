"""What can be set of the demo."""

from __future__ import annotations

from pydantic import Field

from regrad.bank.config import BuildConfig
from regrad.lab.config import LabConfig
from regrad.settings import Location, Settings
from regrad.training.meta.config import MetaTrainConfig
from serve_app.config import HttpConfig, ServeConfig


class DemoConfig(Settings):
    """`regrad demo`: the whole path on the lab world. Paths inside the parts are set below `output`."""

    output: Location = "runs/demo"
    lab: LabConfig = LabConfig()
    train: MetaTrainConfig
    build: BuildConfig
    serve: ServeConfig
    http: HttpConfig = HttpConfig()
    concurrency: int = Field(32, ge=1, le=256)
    raw_gammas: tuple[float, ...] = Field((0.1, 0.3, 1.0, 2.0, 5.0), min_length=1)
    raw_step_size: float = Field(10.0, gt=0)
