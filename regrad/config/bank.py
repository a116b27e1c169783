"""Indexes and Gradient Banks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regrad.config.cluster import WorkersConfig
from regrad.config.model import ModelPath
from regrad.settings import Location, Settings

CodecName = Literal["float32", "bf16", "int8", "int4", "lowrank16", "lowrank32"]


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
