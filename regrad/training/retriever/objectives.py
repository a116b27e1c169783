"""What a retriever is trained to do, given how likely the answer is with each passage: five objectives, one interface.

The model is p(y, h | x) = p(h|x) p(y|x, h) with a passage h, and an approximate posterior q(h|x, y). All objectives are
functions of [B, K] tensors: for each of B questions the scores of K candidate passages and the log-likelihood of its
answer with each. They know no encoder, no index and no generator, so on a small K they are compared with sums over
everything (`benchmarks/trained_retrieval.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from regrad.training.retriever.chains import sample_chains
from regrad.training.retriever.config import DistillConfig, JsaConfig, MarginalConfig, ObjectiveConfig, VragConfig


@dataclass(frozen=True)
class Candidates:
    """The passages that B questions may rest on, K places each; all tensors are [B, K].

    `prior` and `posterior` are the scores, already divided by the temperature: p(h|x) and q(h|x, y) are their softmax
    over the places that are `present` (unions differ in size). `likelihood` is log p(y|x, h): if the generator is
    trained, a leaf whose gradient says how much each pair counts. `by_prior` and `by_posterior` say which places each
    retriever found among its own best. `start`, if given, is the place of each chain's last state [B]
    (`chains.NO_STATE`: none).
    """

    prior: Tensor
    posterior: Tensor
    likelihood: Tensor
    present: Tensor
    by_prior: Tensor
    by_posterior: Tensor
    start: Tensor | None = None


@dataclass(frozen=True)
class Objected:
    """What an objective says: a loss for each question [B], numbers to report, and where its chains are now [B]."""

    loss: Tensor
    numbers: Mapping[str, float] = field(default_factory=dict)
    states: Tensor | None = None


class Objective(Protocol):
    """From candidates to a loss."""

    needs_posterior: bool
    """Whether a posterior retriever takes part, in finding candidates and in the loss."""

    def __call__(self, found: Candidates, draws: torch.Generator) -> Objected:
        """The loss; `draws` is the only source of chance."""


def log_softmax(scores_BK: Tensor, among_BK: Tensor) -> Tensor:
    """Log of the softmax over the places that count; -inf elsewhere."""
    return scores_BK.masked_fill(~among_BK, -torch.inf).log_softmax(1)


def _mean_under(shares_BK: Tensor, values_BK: Tensor) -> Tensor:
    """[B]; a place without a share adds nothing, whatever its value (-inf, too)."""
    return (shares_BK * values_BK.masked_fill(shares_BK == 0, 0.0)).sum(1)


class Marginal:
    """-log sum over the prior's top K of p(h|x) p(y|x, h): RAG (Lewis et al., 2020), `rag` in JSA-RAG's code.

    p(h|x) is normalised over those K alone, so the gradient is that of the marginal likelihood only if K covers it.
    """

    needs_posterior = False

    def __init__(self, config: MarginalConfig) -> None:
        self._config = config

    def __call__(self, found: Candidates, draws: torch.Generator) -> Objected:
        """See `Objective`."""
        log_prior_BK = log_softmax(found.prior, found.by_prior)
        return Objected(-(log_prior_BK + found.likelihood).logsumexp(1))


class Vrag:
    """Minus the evidence lower bound: sum of q(h) (-log p(y|x, h)) + beta KL(q || p), by exact sums (VRAG).

    They are over the posterior's top K or over the union. The gradient is that of a bound on the marginal likelihood,
    which is tight only where q is p(h|x, y).
    """

    needs_posterior = True

    def __init__(self, config: VragConfig) -> None:
        self._config = config

    def __call__(self, found: Candidates, draws: torch.Generator) -> Objected:
        """See `Objective`."""
        among_BK = found.present if self._config.over == "union" else found.by_posterior
        log_q_BK, log_p_BK = log_softmax(found.posterior, among_BK), log_softmax(found.prior, among_BK)
        q_BK = log_q_BK.exp()
        reconstruction_B = -_mean_under(q_BK, found.likelihood)
        divergence_B = _mean_under(q_BK, log_q_BK - log_p_BK)
        loss_B = reconstruction_B + self._config.beta * divergence_B
        return Objected(loss_B, {"kl": float(divergence_B.detach().mean())})


class Jsa:
    """Joint stochastic approximation: -log p(h|x) - log q(h|x, y), weighted by a chain's states (arXiv 2508.18168).

    Where the chain has converged the gradient with respect to the prior is that of log p(y|x), without bias; a short
    chain leans towards its proposals. The posterior is fitted to p(h|x, y) by the inclusive divergence.
    """

    def __init__(self, config: JsaConfig) -> None:
        self._config = config
        self.needs_posterior = not config.simplified

    def __call__(self, found: Candidates, draws: torch.Generator) -> Objected:
        """See `Objective`."""
        log_p_BK = log_softmax(found.prior, found.present)
        log_q_BK = log_p_BK if self._config.simplified else log_softmax(found.posterior, found.present)
        target_BK = log_p_BK.detach() + found.likelihood.detach() / self._config.temperature_lm
        start_B = found.start if self._config.keep_chain else None
        chains = sample_chains(target_BK, log_q_BK.detach(), self._config.proposals, draws, start_B)
        last_B = chains.states[:, -1]
        if self._config.states == "last":
            shares_BK = torch.zeros_like(log_p_BK).scatter(1, last_B[:, None], 1.0)
        else:
            shares_BK = chains.shares(log_p_BK.shape[1]).to(log_p_BK)
        loss_B = -_mean_under(shares_BK, log_p_BK) - _mean_under(shares_BK, found.likelihood)
        if not self._config.simplified:
            loss_B = loss_B - _mean_under(shares_BK, log_q_BK)
        numbers = {"acceptance": float(chains.accepted.mean()), "effective_sample": float(chains.effective.mean())}
        return Objected(loss_B, numbers, last_B)


class Distill:
    """The divergence between p(h|x) and the softmax of the answer's log-likelihoods over the candidates.

    `to-prior` is Atlas's perplexity distillation, KL(softmax(likelihood) || p); `from-prior` REPLUG's, the other way.
    """

    needs_posterior = False

    def __init__(self, config: DistillConfig) -> None:
        self._config = config

    def __call__(self, found: Candidates, draws: torch.Generator) -> Objected:
        """See `Objective`."""
        log_p_BK = log_softmax(found.prior, found.by_prior)
        log_target_BK = log_softmax(found.likelihood / self._config.temperature, found.by_prior)
        if self._config.direction == "to-prior":
            return Objected(_mean_under(log_target_BK.exp(), log_target_BK - log_p_BK))
        return Objected(_mean_under(log_p_BK.exp(), log_p_BK - log_target_BK))


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective that the settings describe."""
    match config:
        case MarginalConfig():
            return Marginal(config)
        case VragConfig():
            return Vrag(config)
        case JsaConfig():
            return Jsa(config)
        case DistillConfig():
            return Distill(config)
