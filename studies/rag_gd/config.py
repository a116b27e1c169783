"""What the study of RAG-GD's boundary runs, and how much of it."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from regrad.settings import Location, Settings

SetName = Literal["diabetes", "breast-cancer", "wine", "student-t", "lognormal"]
SET_NAMES: tuple[SetName, ...] = get_args(SetName)
Normalisation = Literal["z-score", "min-max", "rank", "tanh"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)


class TrainingConfig(Settings):
    """How a layer is trained: Adam on fresh tasks, squared error, the learning rate falling to nothing by a cosine."""

    steps: int = Field(300, ge=1, description="of a single layer (the paper: 8,000 to 10,000 of plain SGD)")
    stacked_steps: int = Field(300, ge=1, description="of a stack of layers (the paper: about 40,000)")
    tabular_steps: int = Field(120, ge=1, description="of an embedding with its layer, on tabular sets")
    batch_size: int = Field(64, ge=1, description="tasks of a step")
    learning_rate: float = Field(2e-2, gt=0, description="of a stack: over its depth")


class RagGdConfig(Settings):
    """`python -m studies.rag_gd`: train linear attention, compare it with the constructed layer, report."""

    output: Location = "runs/rag-gd"
    report: Location | None = Field(None, description="the report; below the output if null")
    quick: bool = Field(False, description="too little training for a verdict; the report says so")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="of tasks, starts and draws")
    size: int = Field(10, ge=1, description="of a query's and a document's feature")
    examples: int = Field(10, ge=1, description="N, solved examples in the context")
    documents: tuple[int, ...] = Field((2, 5, 10, 25), min_length=1, description="that a task has, one cell each")
    stacked_documents: tuple[int, ...] = Field((2, 10), min_length=1, description="the same for stacks")
    reaches: tuple[float, ...] = Field((0.5, 1.0, 1.5, 2.0), min_length=1, description="a: test inputs from U(-a, a)")
    depths: tuple[int, ...] = Field((2, 5), min_length=1, description="of stacks with shared weights")
    spread: float = Field(0.3, gt=0, description="standard deviation of W_z and M, which the paper leaves open")
    sets: tuple[SetName, ...] = Field(SET_NAMES, min_length=1, description="tabular ones")
    normalisations: tuple[Normalisation, ...] = Field(NORMALISATIONS, min_length=1)
    hidden: int = Field(32, ge=1, description="units of the embedding, which the paper leaves open")
    tabular_documents: int = Field(5, ge=1, description="rows of the corpus that a query gets, the nearest")
    test_tasks: int = Field(1000, ge=10, description="for every comparison")
    training: TrainingConfig = TrainingConfig()
