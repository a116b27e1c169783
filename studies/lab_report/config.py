"""`regrad lab report`: how much of everything is run on the lab."""

from __future__ import annotations

from pydantic import Field, model_validator

from regrad.settings import Location, Settings, WorkersConfig, invalid


class LabStepsConfig(Settings):
    """How long each start is meta-trained, and each baseline fine-tuned, in steps."""

    regrad: int = Field(700, ge=1, description="without passages in the prompt")
    icl: int = Field(100, ge=1, description="with passages in the prompt")
    mixed: int = Field(400, ge=1, description="from people on to people and firms")
    continued: int = Field(400, ge=1, description="from people on to firms")
    notes: int = Field(100, ge=1, description="from people on to the lab `many`: five notes a person")
    notes_icl: int = Field(30, ge=1, description="from there on, with the notes in the prompt")
    fine_tuning: int = Field(200, ge=1, description="ft-direct and the fine-tuned RAGs")
    epochs: int = Field(20, ge=1, description="of cpt and instruction-cpt over their documents")
    adapters: int = Field(6, ge=1, description="epochs of an adapter over its passage and questions")


class LabReportConfig(Settings):
    """`regrad lab report`: everything on the lab world, and a verdict on each claim."""

    output: Location = "runs/lab-report"
    report: Location | None = Field(None, description="the report; docs/lab-report.md in regrad's own checkout if null")
    quick: bool = Field(False, description="too little of everything for its numbers to be of use; the report says so")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="of meta-training, cpt, and what is drawn")
    people: int = Field(400, ge=10, le=400, description="whose documents each lab has, and who are asked about")
    questions: int = Field(200, ge=2, le=2000, description="of each set")
    hard_questions: int = Field(150, ge=2, le=2000, description="of each harder lab")
    records: int = Field(4000, ge=1, description="task records of meta-training")
    documents: tuple[int, ...] = Field(
        (50, 100, 200, 400), min_length=2, max_length=4, description="injected, in the drift study"
    )
    steps: LabStepsConfig = LabStepsConfig()
    timed: int = Field(60, ge=2, le=2000, description="questions whose latency is measured, one at a time")
    batched: int = Field(192, ge=32, le=2000, description="questions that are answered in batches and one by one")
    cluster: WorkersConfig = Field(WorkersConfig(), description="steps that run at once, each with one worker")

    @model_validator(mode="after")
    def _possible(self) -> LabReportConfig:
        rising = list(self.documents) == sorted(set(self.documents))
        if not rising or not 1 <= self.documents[0] <= self.documents[-1] <= self.people:
            raise invalid(
                "not_rising", f"documents are growing numbers from 1 to {self.people}, the documents that the lab has"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise invalid("repeated", f"seeds has a number twice: {self.seeds}")
        return self
