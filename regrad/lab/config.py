"""Settings of the lab world, its base model and its question writer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regrad.models.config import ModelConfig
from regrad.settings import Location, Settings

LabVariant = Literal["people", "many", "long", "conflict", "unseen", "firms"]


class LabConfig(Settings):
    """`regrad lab world`: the lab's files."""

    output: Location = "runs/lab"
    variant: LabVariant = Field("people", description="the lab itself (people), or a harder one")
    seed: int = 0
    people: int = Field(
        400, ge=10, le=400, description="held-out people (or firms): the corpus and the questions are about them"
    )
    questions: int = Field(200, ge=1)
    task_records: int = Field(4000, ge=1)
    people_per_record: int = Field(8, ge=3, le=50)
    three_passage_fraction: float = Field(
        1.0, ge=0, le=1, description="share of questions that also rest on other people's passages"
    )
    context_passages: int = Field(3, ge=2, le=20, description="passages of such a question")
    demonstrations: int = Field(
        0, ge=0, le=12, description="solved questions, with their passages, that are also written"
    )
    documents: int = Field(
        0,
        ge=0,
        description="meta-training people whose documents are also written (in a harder lab with questions about them)",
    )
    augmented: int = Field(0, ge=0, description="questions per passage of the corpus, for adapters; 0: none")


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


class LabEncoderConfig(Settings):
    """`regrad lab encoder`: a text encoder that knows the lab's words and nothing of their meaning."""

    output: Location = "runs/lab/encoder"
    seed: int = 0
    dimensions: int = Field(256, ge=8)


class LabWriterConfig(Settings):
    """`regrad lab writer`: a copy of the base that writes questions."""

    model: ModelConfig
    output: Location = "runs/lab/writer"
    seed: int = 0
    steps: int = Field(200, ge=1)
    batch_size: int = Field(24, ge=1)
    lr: float = Field(1e-3, gt=0)
