"""Fine-tuning one LoRA: draws, steps, checkpoints, and the run of a single process."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regrad.errors import TrainingError
from regrad.models.loading import LanguageModel, load_language_model
from regrad.training.lora.batched import RowTrainer
from regrad.training.lora.config import FinetuneConfig, FinetuneOptimizerConfig
from regrad.training.lora.examples import Example, longest, read_examples
from regrad.training.lora.lora_artifact import StaticLora, parent_of
from regrad.training.schedules import learning_rate_factor

_STATE, _TENSORS = "state.json", "state.safetensors"
_KEPT_LOSSES = 500


@dataclass
class FinetuneState:
    """Steps done, the mean loss of each, steps that were skipped, and the seconds that one worker was at it."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    seconds: float = 0.0


class Listener(Protocol):
    """Who is told how a run goes. All workers call every method at the same steps."""

    def report(self, text: str) -> None:
        """A line about the last steps."""

    def checkpoint(self, state: FinetuneState, tensors: dict[str, Tensor]) -> None:
        """Keep this."""


class Silent:
    """A listener that does nothing."""

    def report(self, text: str) -> None:
        """See `Listener`."""

    def checkpoint(self, state: FinetuneState, tensors: dict[str, Tensor]) -> None:
        """See `Listener`."""


def usable(lm: LanguageModel, examples: Sequence[Example], config: FinetuneConfig) -> list[Example]:
    """The examples that fit, at most `config.max_examples` of them, drawn by the seed; others are not looked at.

    Raises `TrainingError` if none is left.
    """
    limit = longest(lm, config.max_tokens)
    wanted = min(config.max_examples or len(examples), len(examples))
    fitting: dict[int, Example] = {}
    for number in _order(len(examples), wanted, config.seed):
        example = examples[number]
        if example.predicts and len(example.ids) <= limit:
            fitting[number] = example
        if len(fitting) == wanted:
            break
    if not fitting:
        raise TrainingError(f"none of {len(examples)} examples has between 2 and {limit} tokens: nothing to train on")
    return [fitting[number] for number in sorted(fitting)]


def _order(count: int, drawn: int, seed: int) -> Iterator[int]:
    """Numbers below `count`: first so many that are drawn, then all others, in the place of those that do not fit."""
    rng = random.Random(f"{seed}/examples")
    first = rng.sample(range(count), drawn)
    yield from first
    others = sorted(set(range(count)).difference(first))
    rng.shuffle(others)
    yield from others


def with_steps(config: FinetuneOptimizerConfig, examples: int) -> FinetuneOptimizerConfig:
    """The same with the number of steps that its epochs come to."""
    if config.epochs is None:
        return config
    return config.model_copy(update={"steps": max(1, math.ceil(config.epochs * examples / config.batch_size))})


def draws(examples: int, first: int, count: int, seed: int) -> list[int]:
    """Numbers of the examples of `count` draws from draw `first` on: a fresh permutation every epoch."""
    found: list[int] = []
    for epoch in range(first // examples, (first + count - 1) // examples + 1):
        order = list(range(examples))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        found += order
    skipped = first % examples
    return found[skipped : skipped + count]


class Finetuner:
    """One worker's side of a run; `reduce` makes the mean over the workers, of which each has an equal share.

    With a `parent` it goes on from that LoRA, with a new optimizer. Raises `MethodError` if the parent is another
    model's, and `TrainingError` if the batch cannot be shared equally.
    """

    def __init__(
        self,
        lm: LanguageModel,
        config: FinetuneConfig,
        examples: Sequence[Example],
        rank: int = 0,
        world_size: int = 1,
        reduce: Callable[[Tensor], Tensor] = lambda values: values,
        listener: Listener | None = None,
        parent: StaticLora | None = None,
    ) -> None:
        check_shares(config, world_size)
        if parent is not None:
            parent.check_base(lm)
            parent.check_subspace(lm)
        start_P = parent.values if parent is not None else lm.subspace.initial(config.seed)
        self._config, self._optimizer = config, with_steps(config.optimizer, len(examples))
        self._examples, self._rank, self._world_size = examples, rank, world_size
        self._listener: Listener = listener or Silent()
        self._trainer = RowTrainer(lm, start_P[None], self._optimizer, reduce=reduce)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self._optimizer.steps

    @property
    def values(self) -> Tensor:
        """The LoRA as it is now [P] float32 on the CPU."""
        return self._trainer.values[0].float().cpu()

    def run(self, state: FinetuneState | None = None, tensors: Mapping[str, Tensor] | None = None) -> FinetuneState:
        """Train to the end, from `state` on. Raises `TrainingError` if too many steps in a row are not finite."""
        state = state or FinetuneState()
        if tensors is not None:
            self._trainer.load(tensors)
        while state.step < self.steps:
            self._step(state)
            last = state.step == self.steps
            if last or state.step % self._config.watch.every == 0:
                self._listener.report(self._line(state))
            if last or state.step % self._config.checkpoints.every == 0:
                self._listener.checkpoint(state, self._trainer.state())
        return state

    def _step(self, state: FinetuneState) -> None:
        started, size = time.perf_counter(), self._optimizer.batch_size
        numbers = draws(len(self._examples), state.step * size, size, self._config.seed)
        mine = [self._examples[i] for i in numbers[self._rank :: self._world_size]]
        losses, moved = self._trainer.step([mine], learning_rate_factor(self._optimizer, state.step))
        state.step += 1
        state.seconds += time.perf_counter() - started
        if moved[0]:
            state.losses.append(float(losses[0]))
            return
        state.skipped.append(state.step)
        limit = self._optimizer.max_bad_steps
        if state.skipped[-limit:] == list(range(state.step - limit + 1, state.step + 1)):
            raise TrainingError(
                f"the loss or its gradient is not finite at step {state.step}, the {limit}. time in a row; lower "
                "optimizer.lr and start again with checkpoints.resume=false"
            )

    def _line(self, state: FinetuneState) -> str:
        recent = state.losses[-self._config.watch.every :]
        loss = sum(recent) / len(recent) if recent else math.nan
        skipped = f", {len(state.skipped)} skipped" if state.skipped else ""
        return f"step {state.step} of {self.steps}, loss {loss:.4f}{skipped}"


def check_shares(config: FinetuneConfig, workers: int) -> None:
    """Raise `TrainingError` unless the batch is the same number of examples for each worker."""
    if config.optimizer.batch_size % workers:
        raise TrainingError(f"batch_size {config.optimizer.batch_size} cannot be shared by {workers} workers equally")


def finished(
    lm: LanguageModel, values_P: Tensor, state: FinetuneState, notes: Mapping[str, Any], workers: int = 1
) -> StaticLora:
    """The result of a run as an adapter, with what is to be known of it; its seconds are those of all workers."""
    losses = [round(loss, 6) for loss in state.losses[:: max(1, len(state.losses) // _KEPT_LOSSES)]]
    told = {**notes, "steps": state.step, "skipped_steps": len(state.skipped), "losses": losses}
    told["seconds"] = round(workers * state.seconds, 3)
    return StaticLora(lm.config, lm.identity(), lm.subspace, values_P, told)


def save_checkpoint(folder: Path, state: FinetuneState, tensors: Mapping[str, Tensor]) -> None:
    """Fill a directory of which the caller makes sure that it is seen whole or not at all."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _TENSORS)
    (folder / _STATE).write_text(json.dumps(asdict(state)))


def load_checkpoint(folder: Path) -> tuple[FinetuneState, dict[str, Tensor]]:
    """The inverse; raises `TrainingError` if the checkpoint is damaged."""
    try:
        return FinetuneState(**json.loads((folder / _STATE).read_text())), load_file(folder / _TENSORS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise TrainingError(
            f"the checkpoint at {folder} is damaged: {error}; start again with checkpoints.resume=false"
        ) from error


def finetune_in_process(config: FinetuneConfig, device: str = "cpu") -> StaticLora:
    """Train one LoRA from start to end; nothing is written, and there are no checkpoints.

    Raises `CorpusError`, `TrainingError` or `MethodError` as a job does.
    """
    parent = parent_of(config)
    lm = load_language_model(config.model, device)
    found = read_examples(config, lm)
    examples = usable(lm, found, config)
    tuner = Finetuner(lm, config, examples, parent=parent)
    state = tuner.run()
    notes = {
        "objective": config.objective,
        "examples": len(examples),
        "left_out": max(0, min(len(found), config.max_examples or len(found)) - len(examples)),
        "parent": parent.digest if parent else None,
        "settings": config.model_dump(mode="json", include={"optimizer", "seed", "k", "corpus", "tasks"}),
    }
    return finished(lm, tuner.values, state, notes)
