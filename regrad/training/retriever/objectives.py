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

from regrad.training.retriever.chains import NO_STATE, sample_chains
from regrad.training.retriever.config import (
    DistillConfig,
    DroConfig,
    JsaConfig,
    MarginalConfig,
    ObjectiveConfig,
    VragConfig,
)


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
    lists: Lists | None = None


@dataclass(frozen=True)
class Lists:
    """Ordered lists of each question's candidates, for objectives over these.

    `orderings` [B, m, L] are places among the K, the first first (`chains.NO_STATE` where there are no more);
    `likelihood` [B, m] is log p(y|x, list), a leaf if the generator is trained; `log_drawn` [B, m] the log-probability
    that the list had when it was drawn.
    """

    orderings: Tensor
    likelihood: Tensor
    log_drawn: Tensor


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
        numbers = {"effective_sample": float(chains.effective.mean())}
        if not bool(chains.accepted.isnan().all()):  # with one proposal a new chain has nothing that is judged
            numbers = {"acceptance": float(chains.accepted.nanmean()), **numbers}
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


def draw_orderings(scores_BK: Tensor, present_BK: Tensor, samples: int, length: int, draws: torch.Generator) -> Tensor:
    """Lists [B, m, L] of the present places from Plackett and Luce's distribution, without repetition in a list."""
    uniform_BmK = torch.rand(len(scores_BK), samples, scores_BK.shape[1], dtype=torch.float64, generator=draws)
    # The order of scores with Gumbel noise is a draw of the whole list at once.
    noise_BmK = -(-uniform_BmK.clamp_min(1e-300).log()).log().to(scores_BK.device)
    keys_BmK = (scores_BK.double()[:, None] + noise_BmK).masked_fill(~present_BK[:, None], -torch.inf)
    found = keys_BmK.topk(min(length, scores_BK.shape[1]), 2)
    return found.indices.masked_fill(torch.isneginf(found.values), NO_STATE)


def ordering_log_probability(scores_BK: Tensor, present_BK: Tensor, orderings_BmL: Tensor) -> Tensor:
    """log p(z|x) of each list [B, m]: the product over its places of a softmax over what is left."""
    left_BmK = present_BK[:, None].expand(-1, orderings_BmL.shape[1], -1)
    total_Bm = scores_BK.new_zeros(orderings_BmL.shape[:2])
    for place_Bm in orderings_BmL.unbind(2):
        there_Bm, at_Bm1 = place_Bm != NO_STATE, place_Bm.clamp_min(0)[..., None]
        log_p_BmK = scores_BK[:, None].masked_fill(~left_BmK, -torch.inf).log_softmax(2)
        chosen_Bm = log_p_BmK.gather(2, at_Bm1)[..., 0]
        total_Bm = total_Bm + chosen_Bm.masked_fill(~there_Bm, 0.0)
        # Where nothing is left, all stay, so that no softmax is over nothing; nothing is chosen there.
        left_BmK = torch.where(there_Bm[..., None], left_BmK.scatter(2, at_Bm1, False), left_BmK)
        left_BmK = torch.where(left_BmK.any(2, keepdim=True), left_BmK, present_BK[:, None])
    return total_Bm


class Dro:
    """Direct retrieval-augmented optimisation: -sum w(z) [log p(z|x) + log p(y|x, z)] over drawn lists z (DRO).

    Lists come from the selector as it was at the expectation, p0(z|x), so the weight of one is p0(z|x, y) / p0(z|x),
    which is p(y|x, z) but for a constant: it is normalised over a question's lists. With m lists the bias is O(1/m).

    The weights add up to one, so sum w grad log p(z|x) is mostly noise: each list is made more probable, whatever it is
    worth. With `baseline` the log-probability counts by w - r, where r is p(z|x) / p0(z|x), normalised like w: the loss
    is the cross-entropy of the lists drawn, between the posterior and the selector by their importance weights, and
    where the two agree nothing moves. At the step of the expectation r is 1/m, and what is subtracted, the mean of
    grad log p(z|x) over draws from p itself, is zero in expectation for every m: no bias is added. At later steps of an
    `iteration` lists are of p0: their plain mean would pull p back to p0, and importance weights put that right. Not
    normalised they would be exact, and have no bound where p has moved far; normalised the bias is O(1/m), as w's is.
    """

    needs_posterior = False

    def __init__(self, config: DroConfig) -> None:
        self._config = config

    def __call__(self, found: Candidates, draws: torch.Generator) -> Objected:
        """See `Objective`."""
        assert found.lists is not None  # whoever drew them gives them
        lists = found.lists
        weights_Bm = lists.likelihood.detach().softmax(1)
        log_p_Bm = ordering_log_probability(found.prior, found.present, lists.orderings)
        counted_Bm = (log_p_Bm - lists.log_drawn).log_softmax(1) if self._config.baseline else log_p_Bm
        loss_B = -(weights_Bm * (counted_Bm + lists.likelihood)).sum(1)
        numbers = {"effective_lists": float((1 / weights_Bm.square().sum(1)).mean())}
        return Objected(loss_B, numbers)


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
        case DroConfig():
            return Dro(config)
