"""The settings of `regrad demo`, and its plan: those of every stage."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from regrad.bank.config import BuildConfig
from regrad.lab.config import LabConfig
from regrad.lab.files import CORPUS, DEV, QUESTIONS, TASKS
from regrad.retrieval.config import IndexConfig
from regrad.settings import Location, Settings
from regrad.training.meta.config import MetaTrainConfig, TaskSource
from serve_app.config import HttpConfig, ReplicaConfig, ServeConfig


class DemoConfig(Settings):
    """`regrad demo`: the whole path on the lab world. All paths of the parts are set to places below `output`."""

    output: Location = "runs/demo"
    lab: LabConfig = LabConfig()
    train: MetaTrainConfig
    build: BuildConfig
    serve: ServeConfig
    http: HttpConfig = HttpConfig()
    concurrency: int = Field(32, ge=1, le=256)
    raw_gammas: tuple[float, ...] = Field((0.1, 0.3, 1.0, 2.0, 5.0), min_length=1)
    raw_step_size: float = Field(10.0, gt=0)


@dataclass(frozen=True)
class DemoPlan:
    """The settings of every stage, with the demo's paths filled in."""

    lab: LabConfig
    questions: str
    train: MetaTrainConfig
    index: IndexConfig
    build: BuildConfig
    serve: ServeConfig
    raw_build: BuildConfig
    raw_serve: ServeConfig
    report: str


def make_demo_plan(config: DemoConfig) -> DemoPlan:
    """The plan for `config.output`."""
    out = config.output
    lab = f"{out}/lab"
    train = config.train.model_copy(
        update={"tasks": (TaskSource(uri=f"{lab}/{TASKS}"),), "dev": (f"{lab}/{DEV}",), "output": f"{out}/meta-init"}
    )
    build = _build(config, "meta-init", "bank")
    serve = config.serve.model_copy(
        update={"meta_init": build.meta_init, "bank": build.bank.uri, "index": f"{out}/index"}
    )
    raw_build = _build(config, "raw-meta-init", "raw-bank")
    # The second application takes the CPUs that the first leaves, and no more processes than it must.
    small = dict.fromkeys(("retriever", "bank_loader", "generator", "gateway"), ReplicaConfig(num_cpus=0.05))
    raw_serve = serve.model_copy(
        update={"meta_init": raw_build.meta_init, "bank": raw_build.bank.uri, "embedded": True, **small}
    )
    return DemoPlan(
        lab=config.lab.model_copy(update={"output": lab}),
        questions=f"{lab}/{QUESTIONS}",
        train=train,
        index=IndexConfig(corpus=f"{lab}/{CORPUS}", output=f"{out}/index"),
        build=build,
        serve=serve,
        raw_build=raw_build,
        raw_serve=raw_serve,
        report=f"{out}/report.json",
    )


def _build(config: DemoConfig, meta_init: str, bank: str) -> BuildConfig:
    place = config.build.bank.model_copy(update={"uri": f"{config.output}/{bank}"})
    update = {"meta_init": f"{config.output}/{meta_init}", "corpus": f"{config.output}/lab/{CORPUS}", "bank": place}
    return config.build.model_copy(update=update)
