"""Settings of synthetic supervision: questions and answers for passages that have none."""

from __future__ import annotations

from string import Formatter

from pydantic import Field, field_validator

from regrad.models.config import ModelConfig
from regrad.settings import Location, Settings, WorkersConfig, invalid

_FIELDS = {"context", "title", "text"}


class SynthesisConfig(Settings):
    """`regrad synth`: write meta-training tasks for a corpus with a causal language model."""

    model: ModelConfig = Field(description="writes the questions and answers, and judges them")
    corpus: Location
    output: Location = Field(description="a directory: tasks.jsonl, rejected.jsonl and report.json")
    index: Location | None = Field(
        None, description="an index of the corpus; with it, a question must find its passage"
    )
    candidates: int = Field(8, ge=1, description="questions sampled for each passage")
    questions: int = Field(5, ge=1, description="maximum number of questions to keep per passage")
    prompt: str = Field("{context}Question:", description="what the model continues with a question and an answer")
    temperature: float = Field(0.8, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: int = Field(64, ge=8, description="limit for a question with its answer")
    max_answer_tokens: int = Field(20, ge=1)
    max_passage_tokens: int = Field(1024, ge=8)
    max_passages: int | None = Field(None, ge=1, description="lines of the corpus to read; null: all")
    batch_passages: int = Field(16, ge=1, description="passages whose candidates are decoded together")
    part_passages: int = Field(256, ge=1, description="passages of one part; an interrupted job reuses its parts")
    passages_per_task: int = Field(8, ge=1, description="passages with questions in one task")
    tasks_per_passage: int = Field(4, ge=1, description="tasks that contain a passage, each with other neighbours")
    neighbours: int = Field(2, ge=0, description="other passages of the task in the context of a question")
    neighbours_fraction: float = Field(0.7, ge=0, le=1, description="share of tasks with neighbours")
    max_rank: int = Field(1, ge=1, description="with an index: a question finds its passage at this rank or better")
    near_hits: int = Field(10, ge=1, description="with an index: hits of a question that count as near its passage")
    seed: int = 0
    cluster: WorkersConfig = WorkersConfig()

    @field_validator("prompt")
    @classmethod
    def _known_fields(cls, prompt: str) -> str:
        found = {field for _, field, _, _ in Formatter().parse(prompt) if field is not None}
        if not found & {"context", "text"} or not found <= _FIELDS:
            raise invalid(
                "wrong_fields",
                f"a template with 'context' or 'text', and maybe 'title', is expected; it has {sorted(found)}",
            )
        return prompt
