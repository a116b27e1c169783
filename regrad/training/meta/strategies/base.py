"""What a strategy is, and how one is made from its settings."""

from __future__ import annotations

from typing import Protocol

from regrad.errors import ConfigError
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import MetaBatch
from regrad.training.meta.config import InnerConfig, StrategyConfig
from regrad.training.meta.objective import MetaGradient, Point


class Strategy(Protocol):
    """Computes the meta-gradient of a batch at a point."""

    @property
    def name(self) -> str:
        """As in the settings."""
        ...

    def __call__(self, lm: LanguageModel, at: Point, batch: MetaBatch) -> MetaGradient:
        """The loss and its gradients; the batch's frozen lower blocks are run once."""
        ...


def make_strategy(config: StrategyConfig, inner: InnerConfig) -> Strategy:
    """The strategy that `config.name` names (not `auto`: `auto.py` turns that into one)."""
    from regrad.training.meta.strategies.exact import Graph, Hvp
    from regrad.training.meta.strategies.finite_difference import Difference, FirstOrder

    if config.name == "graph":
        return Graph(inner.reduction, inner.steps)
    if config.name == "hvp":
        return Hvp(inner.reduction, config.chunk_tokens)
    if config.name == "difference":
        return Difference(inner.reduction, config.chunk_tokens, config.relative_step, config.activation_checkpointing)
    if config.name == "first-order":
        return FirstOrder(inner.reduction, config.chunk_tokens, config.activation_checkpointing)
    raise ConfigError(f"strategy {config.name} has to be chosen for a model and a batch first")
