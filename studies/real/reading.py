"""Whether the starts read: the outer loss on tasks of unseen articles, by whose gradient is applied."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from statistics import fmean

import torch

from regrad.data.tasks import read_tasks
from regrad.errors import EvaluationError
from regrad.meta_init import MetaInit
from regrad.models.loading import load_language_model
from regrad.storage import Storage
from regrad.training.meta.config import ShapeConfig
from regrad.training.meta.objective import Point
from regrad.training.meta.reading import reading_sums
from studies.real.config import RealConfig

READING = "reading.json"
_TASKS = 48
SHAPE = ShapeConfig(k=1, questions=4, max_passage_tokens=512, max_tokens=1024)


@dataclass(frozen=True)
class Reading:
    """Outer losses in nats a token, the mean over tasks and seeds: with the right passage, another one, and none."""

    tasks: int
    right: float
    other: float
    none: float
    untrained_right: float
    untrained_other: float
    untrained_none: float


def point_of(start: MetaInit) -> Point:
    """Where the start's inner step begins, and how far each number of it goes."""
    return Point(start.phi0, start.subspace.per_tensor(start.step_sizes))


def measure_reading(config: RealConfig) -> str:
    """Write `reading.json`; returns one line."""
    torch.set_num_threads(1)
    raw = MetaInit.load(f"{config.output}/starts/raw")
    lm = load_language_model(raw.model, "cpu")
    tasks = read_tasks(f"{config.output}/tasks/held/train.jsonl")[:_TASKS]

    def losses(start: MetaInit) -> tuple[float, float, float]:
        sums = reading_sums(lm, point_of(start), tasks, shape=SHAPE)
        return sums.right / sums.tasks, sums.other / sums.tasks, sums.none / sums.tasks

    trained = [losses(MetaInit.load(f"{config.output}/starts/regrad-{seed}")) for seed in config.seeds]
    right, other, none = (fmean(column) for column in zip(*trained, strict=True))
    found = Reading(len(tasks), right, other, none, *losses(raw))
    Storage(config.output).write(READING, (json.dumps(asdict(found), indent=1) + "\n").encode())
    return f"outer loss {found.right:.3f}, with another passage {found.other:.3f}, with none {found.none:.3f}"


def read_reading(config: RealConfig) -> Reading:
    """What was measured."""
    try:
        return Reading(**json.loads(Storage(config.output).read(READING)))
    except (ValueError, TypeError) as error:
        text = f"{config.output}/{READING} is damaged; remove it and steps/reading.json"
        raise EvaluationError(text, code="damaged", uri=f"{config.output}/{READING}") from error
