"""Training many LoRAs at once, each on its own examples and as if it were alone; and PRAG's LoRA for each passage.

The LoRAs are rows of one batch: one forward and one backward pass serves all of them, and the optimiser, AdamW or plain
SGD, is elementwise: AdamW keeps separate moments and step counts for each row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from regrad.bank.io.prag import read_base_weight
from regrad.data.augmented import Augmented
from regrad.data.questions import Question
from regrad.errors import TokenOutOfVocabulary
from regrad.models.batching import final_hidden, losses_and_grads, tokens_of_a_pass
from regrad.models.half_weights import autocast
from regrad.models.packing import packing_pays, row_length
from regrad.models.subspace import Subspace, finite_rows
from regrad.training.lora.config import AdamWConfig, AdapterConfig, SgdConfig
from regrad.training.lora.examples import Example, adapter_examples, example_batch
from regrad.training.lora.lora_artifact import StaticLora, join
from regrad.training.lora.orthogonal import NullSpace, soft_penalty

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

Lift = Callable[[Tensor], Mapping[Subspace, Tensor]]
"""From what is trained [..., p] to what is applied: [..., P] or [P] in each subspace. Differentiable, and each row on
its own."""

Penalty = Callable[[Tensor], Tensor]
"""From what is trained [..., p] to what is added to the loss of each row [...]. Differentiable."""

Force = Callable[[Tensor], AbstractContextManager[None]]
"""A block in which the model runs with what is trained [p], where that is no LoRA. Differentiable."""

Beside = Callable[[Sequence[Example]], Sequence[tuple[Subspace, Tensor]]]
"""LoRAs [N, p] that are applied, and not trained, with each of N examples."""


class _Entry(NamedTuple):
    """A row of a batch: an example, or one of its questions, of which each has this weight in the loss of the LoRA."""

    row: int
    example: Example
    weight: float

    @property
    def length(self) -> int:
        return row_length(self.example.sequences)


class RowTrainer:
    """U vectors, trained step by step from `start_UP`. The base model is not changed.

    Without a `lift` they are LoRAs of the model's own subspace. `reduce` turns what one worker computed into the mean
    over all workers; a single worker needs none. `beside` gives what else is applied with some examples, [N, p] each.
    A `penalty` is added to the loss of each row. A single row that is no LoRA has a `force` of its own.
    """

    def __init__(
        self,
        lm: LanguageModel,
        start_UP: Tensor,
        config: AdamWConfig | SgdConfig,
        lift: Lift | None = None,
        reduce: Callable[[Tensor], Tensor] = lambda values: values,
        beside: Beside | None = None,
        penalty: Penalty | None = None,
        force: Force | None = None,
    ) -> None:
        self._lm = lm
        self._config = config
        self._penalty = penalty
        self._force = force
        self._lift = lift or (lambda rows: {lm.subspace: rows})
        self._reduce = reduce
        self._beside = beside
        self.half = False
        """Whether the model's products are in bf16; the vectors and their moments stay as they are."""
        self._rows = [row.clone().requires_grad_() for row in start_UP.detach().to(lm.device)]
        self._optimizer: torch.optim.Optimizer
        if isinstance(config, SgdConfig):
            self._optimizer = torch.optim.SGD(self._rows, lr=config.lr, foreach=True)
        else:
            self._optimizer = torch.optim.AdamW(
                self._rows, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, foreach=True
            )

    @property
    def values(self) -> Tensor:
        """The vectors as they are now [U, P]."""
        return torch.stack([row.detach() for row in self._rows])

    def step(
        self, examples: Sequence[Sequence[Example]], factor: float = 1.0, weights: Sequence[float] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of each row on the mean loss of its examples, at `factor` times the learning rate.

        With `weights`, one a row, it is the sum of the losses times the row's weight.

        A row without examples stays as it is, and so does one whose loss or gradient is not finite. Returns each row's
        loss before the step [U] (NaN without examples), and which rows were updated [U] bool.
        """
        losses_U, gradients_UP = self._gradients(examples, weights)
        reduced = self._reduce(torch.cat([losses_U[:, None], gradients_UP], dim=1))
        losses_U, gradients_UP = reduced[:, 0], reduced[:, 1:]
        if self._penalty is not None:
            values_UP = self.values.requires_grad_()
            penalties_U = self._penalty(values_UP)
            losses_U = losses_U + penalties_U.detach()
            gradients_UP = gradients_UP + torch.autograd.grad(penalties_U.sum(), values_UP)[0]
        wanted_U = torch.tensor([bool(items) for items in examples], device=gradients_UP.device)
        updated_U = wanted_U & finite_rows(gradients_UP) & losses_U.isfinite()
        if self._config.clip is not None:
            norms = gradients_UP.norm(dim=1, keepdim=True)
            gradients_UP = gradients_UP * (self._config.clip / norms.clamp_min(self._config.clip))
        # AdamW skips a parameter without a gradient: its moments, step count and weight decay wait, too.
        for row, gradient, updated in zip(self._rows, gradients_UP, updated_U.tolist(), strict=True):
            row.grad = gradient.clone() if updated else None
        self._optimizer.param_groups[0]["lr"] = self._config.lr * factor
        self._optimizer.step()
        return torch.where(wanted_U, losses_U, torch.nan), updated_U

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

    def _gradients(
        self, examples: Sequence[Sequence[Example]], weights: Sequence[float] | None
    ) -> tuple[Tensor, Tensor]:
        """Losses [U] and gradients [U, P], each the mean over the row's examples, or their sum times its weight."""
        losses_U = torch.zeros(len(self._rows), device=self._lm.device)
        gradients_UP = torch.zeros(len(self._rows), self._rows[0].numel(), device=self._lm.device)
        gradients_UP = gradients_UP.to(self._rows[0].dtype)
        shares = weights or [1 / max(1, len(items)) for items in examples]
        entries = [
            _Entry(row, part, shares[row] / len(example.each))
            for row, items in enumerate(examples)
            for example in items
            for part in ([example] if packing_pays(self._lm, [example.sequences]) else example.each)
        ]
        # Chunks of similar length, so that little is padding: at most so many padded tokens, or one example.
        most = tokens_of_a_pass(self._lm, self._config.batch_tokens)
        chunk: list[_Entry] = []
        for entry in sorted(entries, key=lambda entry: entry.length):
            if chunk and (len(chunk) + 1) * entry.length > most:
                self._add(chunk, losses_U, gradients_UP)
                chunk = []
            chunk.append(entry)
        if chunk:
            self._add(chunk, losses_U, gradients_UP)
        return losses_U, gradients_UP

    def _add(self, entries: Sequence[_Entry], losses_U: Tensor, gradients_UP: Tensor) -> None:
        """Add the entries' part to the losses and gradients of their rows."""
        numbers = [entry.row for entry in entries]
        # A LoRA that is alone goes in once, unbatched: its examples then share A and B instead of a copy each.
        one = len(set(numbers)) == 1
        chosen = self._rows[numbers[0]] if one else torch.stack([self._rows[row] for row in numbers])
        leaf = chosen.detach().requires_grad_()
        batch = example_batch(self._lm, [entry.example for entry in entries])
        weights_N = torch.tensor([entry.weight for entry in entries], device=self._lm.device)
        precision = autocast(self._lm, self.half)
        with torch.enable_grad(), self._in_force(leaf, entries), precision:
            hidden_NTD = final_hidden(self._lm, batch)
            losses_S, grads_NTD = losses_and_grads(self._lm, hidden_NTD, batch)
            # `losses_and_grads` ran the backward pass of the logits; the weight scales what enters the rest of it.
            grads_NTD = grads_NTD * weights_N[:, None, None].to(grads_NTD)
            (gradient,) = torch.autograd.grad(hidden_NTD, leaf, grads_NTD)
        where = torch.tensor(numbers, device=self._lm.device)
        of_S = torch.tensor([n for n, entry in enumerate(entries) for _ in entry.example.each], device=where.device)
        losses_U.index_add_(0, where[of_S], (losses_S * weights_N[of_S]).to(losses_U))
        if one:
            gradients_UP[numbers[0]] += gradient
        else:
            gradients_UP.index_add_(0, where, gradient)

    def _in_force(self, leaf: Tensor, entries: Sequence[_Entry]) -> AbstractContextManager[None]:
        if self._force is not None:
            return self._force(leaf)
        updates = self._lift(leaf)
        if self._beside is not None:
            updates = join([*updates.items(), *self._beside([entry.example for entry in entries])])
        return self._lm.applied(updates)


@dataclass(frozen=True)
class Trained:
    """Vectors [U, P], the mean loss of each in its last step, and which of them had a step that failed."""

    values: Tensor
    losses: list[float]
    failed: list[bool]


def train_rows(
    lm: LanguageModel,
    start_UP: Tensor,
    plans: Sequence[Sequence[Sequence[Example]]],
    config: AdamWConfig | SgdConfig,
    lift: Lift | None = None,
    weights: Sequence[float] | None = None,
    penalty: Penalty | None = None,
) -> Trained:
    """Train each row by its own plan: the examples of each of its steps; `weights` are as in `RowTrainer.step`."""
    trainer = RowTrainer(lm, start_UP, config, lift, penalty=penalty)
    losses = [float("nan")] * len(plans)
    failed = [False] * len(plans)
    for step in range(max((len(plan) for plan in plans), default=0)):
        examples = [plan[step] if step < len(plan) else () for plan in plans]
        losses_U, updated_U = trainer.step(examples, weights=weights)
        for row, (loss, updated) in enumerate(zip(losses_U.tolist(), updated_U.tolist(), strict=True)):
            if examples[row]:
                losses[row] = loss
                failed[row] = failed[row] or not updated
    return Trained(trainer.values, losses, failed)


@dataclass(frozen=True)
class Adapter:
    """A passage's LoRA [p] in the trainer's own subspace, or the reason why there is none."""

    values: Tensor | None
    problem: str = ""


class AdapterTrainer:
    """Trains adapters, all from the same vector, on the projections of the model's own subspace.

    That vector is the adapter at `start_from`, or drawn by `seed`. The static LoRA that they are trained on top of
    stays in a subspace of its own, and the settings may keep them orthogonal to it. Raises `MethodError` if it is not
    the model's, `BankError` if the start does not fit, and `TrainingError` if they cannot be orthogonal.
    """

    def __init__(
        self,
        lm: LanguageModel,
        config: AdapterConfig,
        static: StaticLora | None = None,
        seed: int = 42,
        rows: int = 64,
        demonstrations: Sequence[Question] = (),
        start_from: str | None = None,
    ) -> None:
        self._lm = lm
        self._demonstrations = demonstrations
        self._config = config
        self._rows = rows
        self.subspace = Subspace(lm.subspace.modules, config.rank, config.scaling)
        self._static = None
        self._null_space: NullSpace | None = None
        self._penalty: Penalty | None = None
        if static is not None:
            static.check_base(lm)
            self._static = static.subspace, static.values.to(lm.device)
            if config.hard_orthogonality:
                self._null_space = NullSpace(self.subspace, static)
            if config.soft_orthogonality:
                self._penalty = soft_penalty(self.subspace, static, config.soft_orthogonality)
        start_P = read_base_weight(start_from, self.subspace) if start_from else None
        if self._null_space is not None:
            start_P = self._null_space.inner.initial(seed) if start_P is None else self._null_space.project(start_P)
        self._start_P = (self.subspace.initial(seed) if start_P is None else start_P).to(lm.device)

    @property
    def start_digest(self) -> str:
        """SHA-256 (hex) of the vector that adapters are trained from."""
        return hashlib.sha256(self._start_P.cpu().numpy().tobytes()).hexdigest()

    def train(self, items: Sequence[Augmented]) -> list[Adapter]:
        """One adapter a passage, in order; one that cannot be trained has a reason and stops nothing."""
        limit = self._lm.within(self._config.max_tokens)
        results: list[Adapter] = []
        for start in range(0, len(items), self._rows):
            some = items[start : start + self._rows]
            # One sequence a step, in PRAG's order, as often as there are epochs.
            plans: list[list[list[Example]]] = []
            unknown: dict[int, str] = {}
            for number, item in enumerate(some):
                try:
                    examples = adapter_examples(self._lm, item, self._config, self._demonstrations)
                except TokenOutOfVocabulary as error:
                    examples, unknown[number] = [], str(error)
                fitting = [[example] for example in examples if example.predicts and len(example.ids) <= limit]
                plans.append(fitting * self._config.epochs)
            start_UP = self._start_P.expand(len(some), -1)
            trained = train_rows(self._lm, start_UP, plans, self._config, self._lift, penalty=self._penalty)
            rows = zip(some, plans, self._own(trained.values).float().cpu(), trained.failed, strict=True)
            for number, (item, plan, value, failed) in enumerate(rows):
                if number in unknown:
                    results.append(Adapter(None, unknown[number]))
                elif failed:
                    results.append(Adapter(None, "non-finite gradient"))
                elif not plan:
                    results.append(Adapter(None, self._why_nothing(item)))
                else:
                    results.append(Adapter(value.clone()))
        return results

    def _why_nothing(self, item: Augmented) -> str:
        if not item.pairs:
            return "no question-answer pairs"
        if self._config.answers == "full" and not any(pair.full_answer for pair in item.pairs):
            return "no question has a full answer"
        return "every sequence is too long"

    def _lift(self, rows: Tensor) -> Mapping[Subspace, Tensor]:
        own = self.subspace, self._own(rows)
        return join([self._static, own] if self._static else [own])

    def _own(self, rows: Tensor) -> Tensor:
        """The adapters [..., P] that the trained numbers stand for."""
        return self._null_space.lift(rows) if self._null_space is not None else rows
