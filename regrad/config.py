"""What a run can set, all in one place. Files under `configs/` are written in these words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from regrad.prompts import PromptFormat
from regrad.settings import Location, Settings

CodecName = Literal["float32", "bf16", "int8"]


def builtin_config(name: str) -> Path:
    """A file that comes with regrad, such as `jobs/train-lab.yaml`: from the wheel, or from a source checkout."""
    package = Path(__file__).parent
    wheel, checkout = package / "configs" / name, package.parent / "configs" / name
    return wheel if wheel.exists() else checkout


class SubspaceConfig(Settings):
    """The adaptation subspace: LoRA of one rank on some projections of some blocks."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    layers: Literal["upper-half"] | tuple[int, ...] = "upper-half"
    projections: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")

    @property
    def scaling(self) -> float:
        """The factor alpha / rank on B A."""
        return self.alpha / self.rank


def _existing_directory(path: str) -> str:
    return os.path.abspath(path) if os.path.isdir(path) else path


ModelPath = Annotated[str, AfterValidator(_existing_directory)]
"""A directory, a directory URI, a hub name, or `package:NAME/PATH` for one inside an installed package."""


class ModelConfig(Settings):
    """A base language model, its prompts and its subspace."""

    path: ModelPath
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["eager", "sdpa"] = "eager"
    prompts: PromptFormat = PromptFormat()
    subspace: SubspaceConfig = SubspaceConfig()


class WorkersConfig(Settings):
    """How much of the cluster a job takes. `gpu: null` uses GPUs when the cluster has one for each worker."""

    workers: int = Field(2, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpu: bool | None = None


class OptimizerConfig(Settings):
    """AdamW over phi0 and the step sizes, with linear warm-up and linear decay to zero."""

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(16, ge=1, description="task records in the global meta-batch, over all workers")
    lr: float = Field(4e-4, gt=0)
    step_size_lr: float | None = Field(None, gt=0, description="for the relative step sizes; the same as lr if null")
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(0.5, gt=0, description="the norm to which the meta-gradient is clipped")
    zero_stage: Literal[0, 1, 2] = 1


class MetaTrainConfig(Settings):
    """`regrad train`: meta-learn phi0 and the step sizes on tasks of passages, questions and answers."""

    model: ModelConfig
    tasks: Location = Field(description="jsonl of {passages, questions: [{question, answer, context}]}")
    dev: Location | None = Field(None, description="tasks of the same form, scored for exact match at the end")
    output: Location
    storage: Location | None = Field(
        None, description="where workers leave the result for the driver, shared by all nodes; beside `output` if null"
    )
    initial_step_size: float = Field(1e-2, gt=0)
    inner_reduction: Literal["mean", "sum"] = "mean"
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 0
    cluster: WorkersConfig = WorkersConfig()
    log_every: int = Field(50, ge=1)


class IndexConfig(Settings):
    """`regrad index`: a Lucene BM25 index of a corpus."""

    corpus: Location
    output: Location
    threads: int = Field(2, ge=1)


class RetrieverConfig(Settings):
    """BM25's parameters, as pyserini's defaults."""

    k1: float = Field(0.9, ge=0)
    b: float = Field(0.4, ge=0, le=1)


class BankConfig(Settings):
    """Where a Gradient Bank lives and how its atoms are stored."""

    uri: Location
    codec: CodecName = "float32"
    shard_passages: int = Field(128, ge=1)


class BuildConfig(Settings):
    """`regrad build`: one atom for every passage of a corpus."""

    meta_init: Location
    model_path: ModelPath | None = Field(None, description="where the base model is, if not where the MetaInit says")
    corpus: Location
    bank: BankConfig
    batch_tokens: int = Field(2048, ge=1, description="padded tokens in one forward and backward pass")
    max_passage_tokens: int = Field(2048, ge=8)
    cluster: WorkersConfig = WorkersConfig()


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


class LabConfig(Settings):
    """`regrad lab world`: the lab's files."""

    output: Location = "runs/lab"
    seed: int = 0
    questions: int = Field(200, ge=1)
    task_records: int = Field(4000, ge=1)
    people_per_record: int = Field(8, ge=3, le=50)
    three_passage_fraction: float = Field(0.7, ge=0, le=1)


class LabPretrainConfig(Settings):
    """`regrad lab pretrain`: the size of the base model and its schedule (steps, never seconds)."""

    output: Location = "runs/lab/base"
    seed: int = 2
    layers: int = 4
    hidden: int = 128
    heads: int = 4
    ffn: int = 384
    steps: int = 2600
    lr: float = 2e-3
    decay_fraction: float = 0.5
    tokens_per_step: int = 2400
    questions_per_context: int = 8
    memory_questions: int = 64
    documents: int = 12
    advance_at: float = 0.85
    threads: int = 1


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
