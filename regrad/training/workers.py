"""The workers of a run, seen by one of them. A run in a single process has one worker and the same code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from regrad.errors import RegradError, TrainingError
from regrad.text import first_line

Item = TypeVar("Item")


@dataclass(frozen=True)
class Workers:
    """This worker's `rank` among `count`, of which `here` share this machine."""

    rank: int = 0
    count: int = 1
    here: int = 1

    def check(self, batch_size: int) -> None:
        """Raise `TrainingError` unless a batch has the same number of items for each worker."""
        if batch_size % self.count:
            raise TrainingError(
                f"batch_size {batch_size} cannot be shared by {self.count} workers equally; make it a multiple",
                code="batch_not_divisible",
                batch_size=batch_size,
                workers=self.count,
            )

    def share(self, batch: Sequence[Item]) -> list[Item]:
        """This worker's part of a global batch."""
        return list(batch[self.rank :: self.count])

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all workers of their values; a collective, which every worker has to call."""
        if self.count > 1:
            dist.all_reduce(values)
        return values / self.count

    def failure(self, here: Exception | None, device: torch.device) -> Exception | None:
        """What this worker has to raise, if anything went wrong on any of them; a collective.

        What went wrong here, or else an error that the first one has that failed.
        """
        if float(self.mean(torch.tensor([float(here is not None)], device=device))) == 0:
            return None
        found: list[Exception | None] = [None] * self.count
        if self.count > 1:
            # A failure of a kind that is not ours may not be one to send.
            dist.all_gather_object(found, _sent(here))
        return here or next(error for error in found if error is not None)


def _sent(error: Exception | None) -> Exception | None:
    if error is None or isinstance(error, RegradError):
        return error
    reason = f"{type(error).__name__}: {first_line(error)}"
    return TrainingError(f"another worker failed: {reason}", code="worker_failed", reason=reason)


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """The sum of each number over all workers; a collective, which every worker has to call."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor]
