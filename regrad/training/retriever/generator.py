"""The generator, trained with the retriever: p(y|x, h) of a LoRA, or of a MetaInit's phi0 under h's gradient.

An objective is a function of log p(y|x, h). Its derivatives with respect to these numbers are weights, by which a
second pass adds up the gradients of the pairs that have one: a chain of JSA visits few of the candidates, and memory is
that of `batch_tokens` tokens, however many there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regrad.meta_init import CARD as META_INIT_CARD
from regrad.meta_init import MetaInit
from regrad.methods.base import Plan
from regrad.methods.reading import AnswerBatch
from regrad.methods.regrad import BoundMetaInit, ReGradOnlineConfig
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace
from regrad.training.checkpoint import Product
from regrad.training.lora.lora_artifact import CARD as ADAPTER_CARD
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.likelihood import Asked, Likelihood, MethodLikelihood, parts_of


class TrainedGenerator(Likelihood, Protocol):
    """A likelihood with parameters. They are in `module`, a single vector `values` [P] in the model's subspace."""

    @property
    def module(self) -> nn.Module:
        """What is trained, for an optimiser and for checkpoints."""

    def moved(self) -> None:
        """To be called after every change of the parameters."""

    def gradient(self, asked: Sequence[Asked], weights_N: Sequence[float]) -> Tensor:
        """The gradient [P] of the sum of weight times log p(first answer | question, passages)."""

    def product(self, notes: Mapping[str, Any]) -> Product:
        """The artefact as it is now: what evaluations and servers take."""


class Vector(nn.Module):
    """Parameters of an update [P], float32 whatever the model's precision."""

    def __init__(self, values_P: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values_P.detach().clone().float())


class _Generator(MethodLikelihood, ABC):
    """What both kinds share: a pass with gradients over the pairs that have a weight."""

    def __init__(self, lm: LanguageModel, config: RetrieverTrainConfig, values_P: Tensor) -> None:
        super().__init__(lm, config.method, config.likelihood == "token-mean", config.batch_tokens)
        self.module = Vector(values_P.to(lm.device))

    @property
    def values(self) -> Tensor:
        return self.module.values.detach()

    @abstractmethod
    def updates(self, batch: AnswerBatch) -> tuple[Tensor, Mapping[Subspace, Tensor]]:
        """The leaf [P] or [n, P] whose gradient, summed over rows, is that of the parameters, and all updates."""

    def gradient(self, asked: Sequence[Asked], weights_N: Sequence[float]) -> Tensor:
        """See `TrainedGenerator`."""
        total_P, done = torch.zeros_like(self.values), 0
        for some in parts_of(asked):
            plans = self.plans(some)
            answers = [question.answers[0] for question, _ in some]
            for batch in self.reader.batches(plans, answers):
                weights_n = torch.tensor([weights_N[done + place] for place in batch.places], device=total_P.device)
                with torch.enable_grad():
                    leaf, updates = self.updates(batch)
                    losses_n = self.reader.losses(batch, updates, self.reduction)
                    (gradient,) = torch.autograd.grad(-(losses_n * weights_n.to(losses_n)).sum(), leaf)
                total_P += gradient.float() if gradient.dim() == 1 else gradient.float().sum(0)
            done += len(some)
        return total_P


class LoraGenerator(_Generator):
    """A LoRA for all questions, beside passages in the prompt: what `ft-rag` answers with."""

    def __init__(self, lm: LanguageModel, config: RetrieverTrainConfig) -> None:
        start_from = config.generator.start_from if config.generator else None
        start = StaticLora.load(start_from) if start_from else None
        if start is not None:
            start.check_base(lm)
            start.check_subspace(lm)
        super().__init__(lm, config, lm.subspace.initial(config.seed) if start is None else start.values)

    def moved(self) -> None:
        """See `TrainedGenerator`."""

    def read(self, plans: Sequence[Plan], answers: Sequence[str]) -> Tensor:
        """See `MethodLikelihood`."""
        return self.reader.log_likelihoods(plans, answers, self.reduction, {self.lm.subspace: self.values})

    def updates(self, batch: AnswerBatch) -> tuple[Tensor, Mapping[Subspace, Tensor]]:
        """One vector for all rows."""
        leaf_P = self.values.clone().requires_grad_()
        return leaf_P, {self.lm.subspace: leaf_P}

    def product(self, notes: Mapping[str, Any]) -> Product:
        """A static LoRA, as of `regrad finetune`."""
        return StaticLora(self.lm.config, self.lm.identity(), self.lm.subspace, self.values.cpu(), notes)


class StartGenerator(_Generator):
    """The phi0 of a MetaInit, under each passage's gradient at it.

    First order: a passage's gradient is computed anew at every phi0, and is a constant of the step, as FOMAML's is. The
    step sizes stay.
    """

    def __init__(self, lm: LanguageModel, config: RetrieverTrainConfig) -> None:
        assert isinstance(config.method, ReGradOnlineConfig)  # or the settings would have been refused
        self._meta_init = MetaInit.load(config.method.needed_meta_init())
        self._bound = BoundMetaInit(lm, self._meta_init)
        super().__init__(lm, config, self._meta_init.phi0)

    def moved(self) -> None:
        """See `TrainedGenerator`: gradients at another phi0 are others."""
        assert isinstance(self.settings, ReGradOnlineConfig)
        self.use(self.settings.open_at(self._bound.at(self.values.cpu())))

    def updates(self, batch: AnswerBatch) -> tuple[Tensor, Mapping[Subspace, Tensor]]:
        """A vector for each row; a passage without a gradient has none, and its row is the base's."""
        found = batch.updates()
        if not found:  # no passage of these has a gradient
            leaf_P = self.values.clone().requires_grad_()
            return leaf_P, {self.lm.subspace: leaf_P * 0}
        rows_nP = found[self.lm.subspace].requires_grad_()
        with_one_n1 = torch.tensor([[float(bool(plan.updates))] for plan in batch.plans], device=rows_nP.device)
        return rows_nP, {self.lm.subspace: rows_nP * with_one_n1}

    def product(self, notes: Mapping[str, Any]) -> Product:
        """A MetaInit; atoms of a bank of the old one are not its own."""
        noted = {**self._meta_init.notes, "generator": dict(notes)}
        return replace(self._meta_init, phi0=self.values.cpu(), notes=noted)


def make_generator(lm: LanguageModel, config: RetrieverTrainConfig) -> TrainedGenerator:
    """The one that the method's settings ask for; raises what opening the method, or the start, raises."""
    if isinstance(config.method, ReGradOnlineConfig):
        return StartGenerator(lm, config)
    return LoraGenerator(lm, config)


def generator_card(config: RetrieverTrainConfig) -> str:
    """The name of the card in the directory of the trained generator."""
    return META_INIT_CARD if isinstance(config.method, ReGradOnlineConfig) else ADAPTER_CARD


def load_generator(config: RetrieverTrainConfig, folder: str) -> StaticLora | MetaInit:
    """What `product` wrote; raises as the two artefacts do."""
    return (MetaInit if isinstance(config.method, ReGradOnlineConfig) else StaticLora).load(folder)
