"""A network with parameters of its own, trained by the shared loop: y = 3 x0 - 2 x1 + x2, from drawn points.

    python -m tests.tools.regression FOLDER [STEP]

trains into FOLDER, from its newest checkpoint if it has one, and is killed while it writes the checkpoint of STEP.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from regrad.training.callbacks import Silent
from regrad.training.checkpoint import TrainCheckpoint, TrainState, load_module_tensors, module_tensors
from regrad.training.config import CheckpointConfig, ScheduleConfig, TrackingConfig
from regrad.training.loop import Loop, StepResult, resume
from regrad.training.sampler import Sampler, SampleSource

Point = tuple[Tensor, float]

WEIGHTS = torch.tensor([3.0, -2.0, 1.0])


SCHEDULE = ScheduleConfig(steps=40, schedule="cosine", max_bad_steps=2)


@dataclass(frozen=True)
class Line:
    """What is made: the weights in a file."""

    weights: Tensor

    def save(self, uri: Path, /) -> None:
        uri.mkdir()
        save_file({"weights": self.weights}, uri / "line.safetensors")


class LineLearner:
    kind, base, product_name, remedy = "regression", "none", "line", "lower the rate"
    device = torch.device("cpu")

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 1)
        self._optimizer = torch.optim.AdamW(self.layer.parameters(), lr=0.3, weight_decay=0.0)

    def prepare(self, batch: Sequence[Point], state: TrainState) -> str:
        return f"{len(batch)} points a step"

    def step(self, batch: Sequence[Point], factor: float) -> StepResult:
        found = self.layer(torch.stack([x for x, _ in batch]))[:, 0]
        loss = (found - torch.tensor([y for _, y in batch])).square().mean()
        counts = {"points": len(batch)}
        if not bool(torch.isfinite(loss)):
            return StepResult(None, counts)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.param_groups[0]["lr"] = 0.3 * factor
        self._optimizer.step()
        return StepResult(float(loss.detach()), counts)

    def numbers(self) -> dict[str, float]:
        return {"bias": float(self.layer.bias.detach())}

    def tensors(self) -> dict[str, Tensor]:
        return module_tensors(self.layer, self._optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        load_module_tensors(self.layer, self._optimizer, tensors)

    def product(self, state: TrainState) -> Line:
        return Line(self.layer.weight.detach().clone())


def points() -> list[Point]:
    xs = torch.randn(20, 3, generator=torch.Generator().manual_seed(5))
    return [(x, float(x @ WEIGHTS)) for x in xs]


def batches(first: int = 0, steps: int = SCHEDULE.steps) -> Iterator[list[Point]]:
    all_points = points()
    for draws in Sampler([SampleSource(len(all_points), "0")], 4).steps(first, steps):
        yield [all_points[draw.number] for draw in draws]


class Keeper(Silent):
    """Keeps all checkpoints in a folder, by step; killed while the one of `fatal` is written."""

    def __init__(self, folder: Path, fatal: int | None = None) -> None:
        self._folder, self._fatal = folder, fatal

    def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
        if checkpoint.state.step == self._fatal:
            checkpoint = TrainCheckpoint(checkpoint.kind, checkpoint.base, checkpoint.state, {}, "line", _Killed())
        checkpoint.save(self._folder / f"{checkpoint.state.step:03}")


class _Killed:
    def save(self, uri: Path, /) -> None:
        uri.mkdir()
        os.kill(os.getpid(), signal.SIGKILL)


def newest(folder: Path) -> Path | None:
    return max((path for path in folder.iterdir() if not path.name.startswith(".")), default=None)


def train(folder: Path, fatal: int | None = None) -> tuple[LineLearner, TrainState]:
    learner = LineLearner()
    state = resume(learner, nullcontext(newest(folder)))
    loop = Loop(learner, SCHEDULE, CheckpointConfig(every=5), TrackingConfig(every=10), Keeper(folder, fatal))
    return learner, loop.run(batches(state.step), state)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
