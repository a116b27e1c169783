"""What can be set of a bank, of reading one through tiers, and of filling one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regrad.models.config import ModelConfig, ModelPath
from regrad.settings import Location, Settings, WorkersConfig

CodecName = Literal["float32", "bf16", "int8", "int4", "lowrank16", "lowrank32"]

OnMissing = Literal["online", "fewer", "rag", "fail"]
"""What is done for a passage without an atom in the bank: compute it now, leave it out, answer by RAG, or stop."""

OnMissingAdapter = Literal["fewer", "rag", "fail"]
"""The same in a bank of adapters: training one takes longer than a question can wait."""

OnMissingInTraining = Literal["fewer", "fail"]
"""The same for adapters applied while a LoRA is trained on questions: their answers are given, so RAG has nothing to
answer."""


class BankConfig(Settings):
    """Where a Gradient Bank lives and how its atoms are stored."""

    uri: Location
    codec: CodecName = "float32"
    shard_passages: int = Field(128, ge=1)


class TiersConfig(Settings):
    """Where a reader of a bank keeps atoms, nearest first, and how it fetches all others."""

    memory_bytes: int = Field(512 * 1024 * 1024, ge=0, description="encoded atoms kept in this process; 0: none")
    disk: Location | None = Field(None, description="a local directory that caches the atoms of a remote bank")
    disk_bytes: int = Field(
        16 * 1024**3, ge=0, description="maximum number of bytes in `disk`; the least recently used atoms are evicted"
    )
    parallel_reads: int = Field(16, ge=1, le=256)
    inflight_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1,
        description="maximum number of bytes being fetched at a time; limits parallel_reads if atoms are large",
    )
    deadline_seconds: float = Field(10.0, gt=0, description="an atom that has not arrived by then counts as absent")
    backoff_seconds: float = Field(0.05, ge=0, description="wait before the first retry; doubled for each further one")


class BuildConfig(Settings):
    """`regrad build`: one atom for every passage of a corpus."""

    meta_init: Location
    model_path: ModelPath | None = Field(
        None, description="path of the base model; null: the one recorded in the MetaInit"
    )
    corpus: Location
    bank: BankConfig
    batch_tokens: int = Field(
        2048, ge=1, description="padded tokens per forward and backward pass; more is faster and needs more memory"
    )
    max_passage_tokens: int = Field(2048, ge=8)
    cluster: WorkersConfig = WorkersConfig()


class LearnedStartConfig(Settings):
    """`regrad meta-init import`: a MetaInit of what the ReGrad release learned."""

    source: Location = Field(description="the directory that the release's Meta.py wrote")
    model: ModelConfig = Field(description="the base and its prompts; the subspace is the start's own")
    output: Location
