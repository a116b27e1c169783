"""Training RAG-GD's predictor: what one step computes and updates, and one worker's run from start to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from regrad.errors import TrainingError
from regrad.models.loading import LanguageModel, load_language_model
from regrad.training.callbacks import Listener, Silent
from regrad.training.checkpoint import TrainState, load_module_tensors, module_step, module_tensors
from regrad.training.loop import StepResult, train_on
from regrad.training.lora.examples import Example
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.predictor.answers import answer_gradients
from regrad.training.predictor.artifact import UpdatePredictor
from regrad.training.predictor.config import PredictorConfig
from regrad.training.predictor.contexts import Context, TaskContexts, states_of, steps_on
from regrad.training.predictor.matching import Likeness, likeness, target_of
from regrad.training.predictor.network import UpdateNetwork
from regrad.training.workers import Workers

PREDICTOR = "predictor"
_NOTED = {"inner", "norm_weight", "optimizer", "tasks", "seed"}


@dataclass(frozen=True)
class Work:
    """What one worker found in one step: a scalar to differentiate, the mean loss, and updates [U, P].

    Of objective `steps` the updates are the targets, of `answers` the predicted ones.
    """

    differentiable: Tensor
    loss: Tensor
    updates_UP: Tensor
    numbers: Mapping[str, float] = field(default_factory=dict)


class PredictorLearner:
    """One worker's side of training a predictor: a `Learner` of contexts.

    Objective `steps`: a step computes the gradient steps on each context, which are the target, and its state; then the
    network learns to tell the one from the other. Objective `answers`: the last question of what was drawn is no part
    of the context, and the network learns to make its answer likely. Neither the base model nor W0 changes. Raises
    `MethodError` if W0 is another model's, and `TrainingError` if the network is too large or the batch cannot be
    shared equally.
    """

    kind = "predictor"
    product_name = PREDICTOR
    remedy = "lower optimizer.lr, or inner.lr if the steps on the contexts diverge"

    def __init__(
        self, lm: LanguageModel, config: PredictorConfig, adapter: StaticLora, workers: Workers = Workers()
    ) -> None:
        workers.check(config.optimizer.batch_size)
        adapter.check_base(lm)
        self._lm, self._config, self._adapter, self._workers = lm, config, adapter, workers
        self._start_P = adapter.values.to(lm.device)
        self._states = int(lm.text_config.hidden_size)
        self.network = UpdateNetwork(self._states, adapter.subspace, config.network, config.seed).to(lm.device)
        self.share = check_size(lm, self.network, config.network.largest_share)
        optimizer = config.optimizer
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay
        )
        self._sum_P = torch.zeros_like(self._start_P)
        self._summed = torch.zeros((), dtype=torch.float64)
        self._latest: Mapping[str, float] = {}
        self._known: dict[tuple[Example, ...], tuple[Tensor, Tensor]] = {}
        self._identity = lm.identity()
        self.base = f"{self._identity}+{adapter.digest}"
        self.device = lm.device

    def prepare(self, batch: Sequence[Context], state: TrainState) -> str:
        """Before the first step: give each projection's updates the size that the first targets have.

        The sizes of real steps and of a new network's outputs differ by orders of magnitude, and the network's scales
        would take thousands of small steps to learn what one look says.
        """
        if state.step:
            return ""
        with torch.no_grad():
            found, _ = self._compared([self._split(drawn)[0] for drawn in batch])
            found_M = self._workers.mean(found.log_ratio.mean(0))
        # The scale is on both factors, so a product has its square.
        self.network.log_scale.data -= found_M if self._config.space == "factors" else 0.5 * found_M
        return f"the predictor has {self.network.size:,} parameters, {self.share:.1%} of the base model's"

    def step(self, batch: Sequence[Context], factor: float) -> StepResult:
        """See `Learner`."""
        work = self._answered(batch) if self._config.objective == "answers" else self._imitated(batch)
        gradients = torch.autograd.grad(work.differentiable, list(self.network.parameters()))
        flat = torch.cat([work.loss[None], work.updates_UP.mean(0), parameters_to_vector(gradients)])
        flat = self._workers.mean(flat)
        counts = {"contexts": len(batch), "tokens": sum(len(one.ids) for context in batch for one in context)}
        if not bool(torch.isfinite(flat).all()):
            return StepResult(None, counts)

        # 1. The network's step.
        loss, mean_P, gradient = torch.split(flat, [1, len(self._sum_P), self.network.size])
        optimizer = self._config.optimizer
        module_step(self.network, self._optimizer, gradient, optimizer.lr * factor, optimizer.clip)

        # 2. The mean of all updates, which is the control without a context.
        self._sum_P += mean_P
        self._summed += 1
        self._latest = work.numbers
        return StepResult(float(loss), counts)

    def numbers(self) -> Mapping[str, float]:
        """Means of the latest step on this worker, before the step."""
        return self._latest

    def tensors(self) -> dict[str, Tensor]:
        """See `Learner`."""
        mean = {"constant.sum": self._sum_P.cpu().clone(), "constant.count": self._summed.clone()}
        return module_tensors(self.network, self._optimizer) | mean

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Learner`."""
        load_module_tensors(self.network, self._optimizer, tensors)
        self._sum_P.copy_(tensors["constant.sum"])
        self._summed.copy_(tensors["constant.count"])

    def product(self, state: TrainState) -> UpdatePredictor:
        """The predictor as it is now, with notes on the run; `seconds` is the sum over all workers."""
        settings = self._config.model_dump(mode="json", include=_NOTED)
        notes = {
            "settings": settings,
            "parameters": self.network.size,
            "share": self.share,
            **state.notes(self._workers.count),
        }
        return UpdatePredictor(
            self._lm.config,
            self._identity,
            self._adapter.digest,
            self._config.space,
            self._config.context,
            self._config.network,
            self.network,
            self._states,
            self._sum_P / self._summed.clamp_min(1).to(self._sum_P),
            notes,
            self._config.objective,
        )

    def _imitated(self, batch: Sequence[Context]) -> Work:
        """RAG-GD: how far the predictions are from gradient steps on the contexts."""
        found, steps_UP = self._compared(batch)
        loss = found.loss(self._config.norm_weight).mean()
        cosine, log_ratio = found.cosine.detach(), found.log_ratio.detach()
        numbers = {"cosine": float(cosine.mean()), "log_norm_error": float(log_ratio.abs().mean())}
        return Work(loss, loss.detach(), steps_UP, numbers)

    def _answered(self, batch: Sequence[Context]) -> Work:
        """HyperTuning: how likely the predictions make the answers to the questions that the contexts lack."""
        contexts, asked = zip(*(self._split(drawn) for drawn in batch), strict=True)
        states_UD = states_of(self._lm, contexts, {self._adapter.subspace: self._start_P})
        updates_UP = self.network(states_UD)
        losses_U, gradients_UP = answer_gradients(self._lm, self._adapter, self._config.space, updates_UP, asked)
        # What the model did to the loss is in `gradients_UP`; of this product the network's gradient is that of the
        # mean loss.
        product = (gradients_UP * updates_UP).sum(-1).mean()
        numbers = {"update_norm": float(updates_UP.detach().norm(dim=-1).mean())}
        return Work(product, losses_U.mean(), updates_UP.detach(), numbers)

    def _split(self, drawn: Context) -> tuple[Context, Example]:
        """A context, and the question that it is to help with: the last one drawn, unless steps are imitated."""
        return (drawn, drawn[-1]) if self._config.objective == "steps" else (drawn[:-1], drawn[-1])

    def _compared(self, batch: Sequence[Context]) -> tuple[Likeness, Tensor]:
        """How like the targets the predictions are, and the targets' steps [U, P]."""
        subspace, space = self._adapter.subspace, self._config.space
        worked = [self._worked(context) for context in batch]
        states_UD = torch.stack([state_D.to(self.device) for state_D, _ in worked])
        ends_UP = torch.stack([end_P.to(self.device) for _, end_P in worked])
        target = target_of(subspace, self._start_P, ends_UP, space)
        return likeness((subspace, self.network(states_UD)), target, space), ends_UP - self._start_P

    def _worked(self, context: Context) -> tuple[Tensor, Tensor]:
        """A context's state [D] and where the steps on it end [P], which are NaN if they failed."""
        # Neither depends on the network, so what is drawn again need not be computed again; and both are the same to
        # the last bit, as a resumed run, which remembers nothing, has to come to the same numbers.
        key = tuple(context)
        if key in self._known:
            return self._known[key]
        subspace = self._adapter.subspace
        (state_D,) = states_of(self._lm, [context], {subspace: self._start_P})
        end_P = steps_on(self._lm, context, subspace, self._start_P, self._config.inner)
        worked = state_D, torch.full_like(self._start_P, torch.nan) if end_P is None else end_P
        if len(self._known) < self._config.remember:
            self._known[key] = worked[0].cpu(), worked[1].cpu()
        return worked


def check_size(lm: LanguageModel, network: UpdateNetwork, largest: float) -> float:
    """The network's parameters over the base model's; raises `TrainingError` if that is more than `largest`."""
    backbone = sum(parameter.numel() for parameter in lm.model.parameters())
    share = network.size / backbone
    if share > largest:
        raise TrainingError(
            f"the predictor would have {network.size:,} parameters, {share:.1%} of the base model's {backbone:,}, and "
            f"at most {largest:.1%} is allowed; lower network.basis, network.hidden or the adapter's rank, or raise "
            "network.largest_share",
            code="predictor_too_large",
            parameters=network.size,
            backbone=backbone,
        )
    return share


def contexts_of(lm: LanguageModel, config: PredictorConfig) -> TaskContexts:
    """What is drawn: contexts, and of objective `answers` one question more than a context has.

    Raises `CorpusError` for bad data.
    """
    context = config.context
    if config.objective == "answers":
        context = context.model_copy(update={"demonstrations": context.demonstrations + 1})
    return TaskContexts(lm, config.tasks, context, config.contexts, config.seed)


def predictor_worker(
    config: PredictorConfig,
    listener: Listener,
    device: torch.device | str,
    workers: Workers = Workers(),
    checkpoint: AbstractContextManager[Path | None] = nullcontext(),
) -> UpdatePredictor:
    """One worker's run, from the start or from a checkpoint.

    Raises `CorpusError` for bad data, `MethodError` and `TrainingError` as `PredictorLearner`, `Loop.run` and `resume`.
    """
    adapter = StaticLora.load(config.adapter)
    lm = load_language_model(config.model, device)
    learner = PredictorLearner(lm, config, adapter, workers)
    contexts = contexts_of(lm, config)
    return learner.product(train_on(learner, contexts, config, listener, workers, checkpoint))


def predictor_in_process(config: PredictorConfig, device: str = "cpu") -> UpdatePredictor:
    """The job with one worker and no cluster, from start to end; nothing is written, and there are no checkpoints."""
    return predictor_worker(config, Silent(), device)
