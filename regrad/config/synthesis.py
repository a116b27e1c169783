"""Synthetic supervision: questions and answers for passages that have none."""

from __future__ import annotations

from pydantic import Field

from regrad.config.cluster import WorkersConfig
from regrad.config.model import ModelConfig
from regrad.settings import Location, Settings


class SynthesisConfig(Settings):
    """`regrad synth`: write meta-training tasks for a corpus with a causal language model."""

    model: ModelConfig = Field(description="writes the questions and answers, and judges them")
    corpus: Location
    output: Location = Field(description="a directory: tasks.jsonl, rejected.jsonl and report.json")
    index: Location | None = Field(None, description="a Lucene index of the corpus: neighbours become distractors")
    candidates: int = Field(8, ge=1, description="questions that are tried for each passage")
    questions: int = Field(5, ge=1, description="questions kept of each passage, at most")
    neighbours: int = Field(2, ge=0, description="retrieved (without an index: random) passages beside each passage")
    prompt: str = Field("{context}Question:", description="what the model continues with a question, and an answer")
    temperature: float = Field(0.8, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: int = Field(64, ge=8)
    max_passage_tokens: int = Field(1024, ge=8)
    max_passages: int | None = Field(None, ge=1, description="stop after so many passages of the corpus")
    batch_passages: int = Field(16, ge=1, description="passages that one worker takes at a time")
    seed: int = 0
    cluster: WorkersConfig = WorkersConfig()
