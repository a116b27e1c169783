"""Training many LoRAs at once, each on its own examples and as if it were alone.

They are rows of one batch: a forward and a backward pass serves all, and AdamW, which is elementwise, keeps the moments
and the step count of each row for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regrad.models.batching import losses_and_grads
from regrad.models.loading import LanguageModel
from regrad.models.subspace import finite_rows
from regrad.training.lora.config import AdamWConfig
from regrad.training.lora.examples import Example, example_batch

Lift = Callable[[Tensor], Tensor]
"""From what is trained [..., p] to updates of the model [..., P]; differentiable, and each row by itself."""


class _Entry(NamedTuple):
    row: int
    example: Example
    weight: float


class RowTrainer:
    """U vectors, trained step by step from `start_UP`. The base model is not touched.

    `reduce` makes the mean over workers of what each of them computed; alone, there is nothing to do.
    """

    def __init__(
        self,
        lm: LanguageModel,
        start_UP: Tensor,
        config: AdamWConfig,
        lift: Lift = lambda rows: rows,
        reduce: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self._lm, self._config, self._lift, self._reduce = lm, config, lift, reduce
        self._rows = [row.clone().requires_grad_() for row in start_UP.detach().to(lm.device)]
        self._optimizer = torch.optim.AdamW(
            self._rows, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, foreach=True
        )

    @property
    def values(self) -> Tensor:
        """The vectors as they are now [U, P]."""
        return torch.stack([row.detach() for row in self._rows])

    def step(self, examples: Sequence[Sequence[Example]], factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """One AdamW step of each row on the mean loss of its examples, at `factor` times the learning rate.

        A row without examples stays as it is, and so does one whose loss or gradient is not finite. Returns each row's
        loss before the step [U] (not a number where it has none), and which rows have moved [U] bool.
        """
        losses_U, gradients_UP = self._gradients(examples)
        reduced = self._reduce(torch.cat([losses_U[:, None], gradients_UP], dim=1))
        losses_U, gradients_UP = reduced[:, 0], reduced[:, 1:]
        asked_U = torch.tensor([bool(items) for items in examples], device=gradients_UP.device)
        moved_U = asked_U & finite_rows(gradients_UP) & losses_U.isfinite()
        if self._config.clip is not None:
            norms = gradients_UP.norm(dim=1, keepdim=True)
            gradients_UP = gradients_UP * (self._config.clip / norms.clamp_min(self._config.clip))
        for row, gradient, moved in zip(self._rows, gradients_UP, moved_U.tolist(), strict=True):
            row.grad = gradient.clone() if moved else None
        self._optimizer.param_groups[0]["lr"] = self._config.lr * factor
        self._optimizer.step()
        return torch.where(asked_U, losses_U, torch.nan), moved_U

    def state(self) -> dict[str, Tensor]:
        """The vectors, their moments and step counts, on the CPU."""
        empty = torch.zeros_like(self._rows[0])
        kept = [self._optimizer.state.get(row, {}) for row in self._rows]
        state = {name: torch.stack([item.get(name, empty) for item in kept]) for name in ("exp_avg", "exp_avg_sq")}
        state["step"] = torch.tensor([float(item.get("step", 0)) for item in kept])
        return {name: tensor.detach().cpu() for name, tensor in {"values": self.values, **state}.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for i, row in enumerate(self._rows):
            row.data.copy_(state["values"][i])
            if state["step"][i] > 0:
                kept = {name: state[name][i].to(row) for name in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[row] = {"step": state["step"][i].clone(), **kept}

    def _gradients(self, examples: Sequence[Sequence[Example]]) -> tuple[Tensor, Tensor]:
        """Losses [U] and gradients [U, P], each the mean over the row's examples."""
        losses_U = torch.zeros(len(self._rows), device=self._lm.device)
        gradients_UP = torch.zeros(len(self._rows), self._rows[0].numel(), device=self._lm.device)
        gradients_UP = gradients_UP.to(self._rows[0].dtype)
        entries = [_Entry(row, example, 1 / len(items)) for row, items in enumerate(examples) for example in items]
        for chunk in _chunks(entries, self._config.batch_tokens):
            self._add(chunk, losses_U, gradients_UP)
        return losses_U, gradients_UP

    def _add(self, entries: Sequence[_Entry], losses_U: Tensor, gradients_UP: Tensor) -> None:
        numbers = [entry.row for entry in entries]
        one = len(set(numbers)) == 1
        chosen = self._rows[numbers[0]] if one else torch.stack([self._rows[row] for row in numbers])
        leaf = chosen.detach().requires_grad_()
        batch = example_batch(self._lm, [entry.example for entry in entries])
        weights_N = torch.tensor([entry.weight for entry in entries], device=self._lm.device)
        with torch.enable_grad(), self._lm.lora.applied(self._lift(leaf)):
            hidden_NTD = self._lm.hidden(batch.ids[:, :-1])
            losses_N, grads_NTD = losses_and_grads(self._lm, hidden_NTD, batch)
            # The logits' part of the backward pass is done; a row's weight scales what enters the rest of it.
            grads_NTD = grads_NTD * weights_N[:, None, None].to(grads_NTD)
            (gradient,) = torch.autograd.grad(hidden_NTD, leaf, grads_NTD)
        where = torch.tensor(numbers, device=self._lm.device)
        losses_U.index_add_(0, where, (losses_N * weights_N).to(losses_U))
        if one:
            gradients_UP[numbers[0]] += gradient
        else:
            gradients_UP.index_add_(0, where, gradient)


@dataclass(frozen=True)
class Trained:
    """Vectors [U, P], the mean loss of each in its last step, and which of them ever had a step that failed."""

    values: Tensor
    losses: list[float]
    failed: list[bool]


def train_rows(
    lm: LanguageModel,
    start_UP: Tensor,
    plans: Sequence[Sequence[Sequence[Example]]],
    config: AdamWConfig,
    lift: Lift = lambda rows: rows,
) -> Trained:
    """Train each row by its own plan: for every step that it takes, the examples of that step."""
    trainer = RowTrainer(lm, start_UP, config, lift)
    losses, failed = [float("nan")] * len(plans), [False] * len(plans)
    for step in range(max((len(plan) for plan in plans), default=0)):
        examples = [plan[step] if step < len(plan) else () for plan in plans]
        found_U, moved_U = trainer.step(examples)
        for row, (loss, moved) in enumerate(zip(found_U.tolist(), moved_U.tolist(), strict=True)):
            losses[row] = loss if examples[row] else losses[row]
            failed[row] = failed[row] or (bool(examples[row]) and not moved)
    return Trained(trainer.values, losses, failed)


def _chunks(entries: Sequence[_Entry], tokens: int) -> Iterator[list[_Entry]]:
    """Entries of similar length, at most so many padded tokens at once (or one)."""
    chunk: list[_Entry] = []
    for entry in sorted(entries, key=lambda entry: len(entry.example.ids)):
        if chunk and (len(chunk) + 1) * len(entry.example.ids) > tokens:
            yield chunk
            chunk = []
        chunk.append(entry)
    if chunk:
        yield chunk
