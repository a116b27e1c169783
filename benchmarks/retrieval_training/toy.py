"""Questions with 40 passages whose marginal likelihood is a sum: what each estimator's gradient is off by, and varies.

A toy's scores of the prior are drawn from N(0, 1), log-likelihoods from N(0, 2), and the posterior's scores are those
of the true posterior and noise from N(0, 1). Gradients are with respect to the scores: of the prior, for which the
gradient of log p(y|x) is known, and of the posterior, where each objective has a minimum of its own and only the
variance counts. Not every estimator is one of that gradient: `TARGETS` says whose it is. Everything is measured on
several toys, and relative to the length of the exact gradient, so that their means say something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from regrad.training.retriever.chains import NO_STATE
from regrad.training.retriever.config import DistillConfig, DroConfig, JsaConfig, MarginalConfig, VragConfig
from regrad.training.retriever.objectives import (
    Candidates,
    Lists,
    draw_orderings,
    make_objective,
    ordering_log_probability,
)

PASSAGES, TOP, TOYS = 40, 10, 8
LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
LIST_LENGTHS = (2, 5, 8, 20, 50)
KEPT_STEPS, M = 40, 50
TOKENS = 4
"""Of the answer, where its likelihood is taken as their mean."""
FEWEST = 5
"""Chains that are expected in a place; where there are fewer, a mean is far from normally distributed."""

MARGINAL, BOUND, PART, OTHER = "log p(y|x)", "a bound on it", "the same over ten passages", "another objective"
TARGETS = {
    f"marginal, top {TOP}": PART,
    "marginal, all": MARGINAL,
    f"vrag, top {TOP}": BOUND,
    "vrag, all": BOUND,
    "vrag, sampled": BOUND,
    "vrag, sampled, baseline": BOUND,
    "distill, to-prior": OTHER,
    "distill, from-prior": OTHER,
    "jsa, all": MARGINAL,
    "jsa, last": MARGINAL,
    "jsa, chain kept": MARGINAL,
    "jsa, simplified": MARGINAL,
    "jsa, simplified, chain kept": MARGINAL,
    "jsa, token mean, chain kept": OTHER,
    "dro": MARGINAL,
    "dro, no baseline": MARGINAL,
}
"""DRO's is the marginal over its lists, which is the passages' where a list is one of them, as here."""

Gradients = tuple[Tensor, Tensor]
"""With respect to the scores of the prior and of the posterior, one row a run [N, K]."""
Case = tuple[str, int, Callable[[torch.Generator], Gradients]]
"""An estimator, its number of proposals or samples (0: none), and its gradients."""


def toy(runs: int, seed: int = 0) -> Candidates:
    """The same question, `runs` times."""
    draws = torch.Generator().manual_seed(seed)
    prior, likelihood, noise = torch.randn(3, 1, PASSAGES, dtype=torch.float64, generator=draws)
    likelihood = 2 * likelihood
    posterior = prior + likelihood + noise
    everywhere = torch.ones(runs, PASSAGES, dtype=torch.bool)
    best = [scores >= scores.topk(TOP, 1).values[:, -1:] for scores in (prior, posterior)]
    repeated = [scores.repeat(runs, 1) for scores in (prior, posterior, likelihood)]
    masks = [mask.repeat(runs, 1) for mask in best]
    return Candidates(repeated[0].requires_grad_(), repeated[1].requires_grad_(), repeated[2], everywhere, *masks)


def true_posterior(found: Candidates) -> Tensor:
    """p(h|x, y) [K]."""
    return (found.prior[0] + found.likelihood[0]).detach().softmax(0)


def exact(found: Candidates) -> Tensor:
    """The gradient of -log p(y|x) with respect to the prior's scores [K]."""
    return found.prior[0].detach().softmax(0) - true_posterior(found)


def of_objective(found: Candidates, config: Any, draws: torch.Generator) -> Gradients:
    """By the library's objective."""
    loss = make_objective(config)(found, draws).loss.sum()
    parts = torch.autograd.grad(loss, (found.prior, found.posterior), allow_unused=True)
    prior, posterior = (torch.zeros_like(found.prior) if part is None else part for part in parts)
    return prior, posterior


def of_kept_chain(found: Candidates, draws: torch.Generator, simplified: bool = False) -> Gradients:
    """JSA after its chain was kept over some visits of the question."""
    config = JsaConfig(proposals=M, keep_chain=True, simplified=simplified)
    states = torch.full((len(found.prior),), NO_STATE)
    with torch.no_grad():
        for _ in range(KEPT_STEPS):
            objected = make_objective(config)(replace(found, start=states), draws)
            assert objected.states is not None
            states = objected.states
    return of_objective(replace(found, start=states), config, draws)


def of_lists(found: Candidates, samples: int, baseline: bool, draws: torch.Generator) -> Gradients:
    """DRO with lists of one passage among all, so that its target is the marginal likelihood, too."""
    scored = (found.prior.detach(), found.present)
    orderings = draw_orderings(*scored, samples, 1, draws)
    likelihood = found.likelihood.gather(1, orderings[..., 0])
    lists = Lists(orderings, likelihood, ordering_log_probability(*scored, orderings))
    return of_objective(replace(found, lists=lists), DroConfig(samples=samples, shown=1, baseline=baseline), draws)


def of_sampled_bound(found: Candidates, samples: int, draws: torch.Generator, baseline: bool) -> Gradients:
    """The bound's gradient from samples of the posterior by the score function; the baseline leaves one sample out.

    The library has no such objective: it sums over candidates.
    """
    log_p, log_q = found.prior.detach().log_softmax(1), found.posterior.detach().log_softmax(1)
    drawn = torch.multinomial(log_q.exp(), samples, replacement=True, generator=draws)
    rewards = (found.likelihood + log_p - log_q).gather(1, drawn)
    if baseline:
        rewards = rewards - (rewards.sum(1, keepdim=True) - rewards) / (samples - 1)
    one_hot = torch.nn.functional.one_hot(drawn, PASSAGES).double()
    prior = log_p.exp() - one_hot.mean(1)
    posterior = -(rewards[:, :, None] * (one_hot - log_q.exp()[:, None, :])).mean(1)
    return prior, posterior


def cases(found: Candidates) -> Iterator[Case]:
    """Every estimator of one toy, with its numbers of proposals or samples."""
    everywhere = torch.ones_like(found.by_prior)
    covered = replace(found, by_prior=everywhere, by_posterior=everywhere)
    mean = replace(found, likelihood=found.likelihood / TOKENS)
    summed: dict[str, tuple[Candidates, Any]] = {
        f"marginal, top {TOP}": (found, MarginalConfig()),
        "marginal, all": (covered, MarginalConfig()),
        f"vrag, top {TOP}": (found, VragConfig()),
        "vrag, all": (covered, VragConfig()),
        "distill, to-prior": (covered, DistillConfig(direction="to-prior")),
        "distill, from-prior": (covered, DistillConfig(direction="from-prior")),
    }
    for name, (one, config) in summed.items():
        yield name, 0, lambda draws, one=one, config=config: of_objective(one, config, draws)
    yield "vrag, sampled", M, lambda draws: of_sampled_bound(found, M, draws, False)
    yield "vrag, sampled, baseline", M, lambda draws: of_sampled_bound(found, M, draws, True)
    yield "jsa, chain kept", M, lambda draws: of_kept_chain(found, draws)
    yield "jsa, simplified, chain kept", M, lambda draws: of_kept_chain(found, draws, True)
    yield "jsa, token mean, chain kept", M, lambda draws: of_kept_chain(mean, draws)
    simplified = JsaConfig(proposals=M, simplified=True)
    yield "jsa, simplified", M, lambda draws: of_objective(found, simplified, draws)
    for states in ("all", "last"):
        for m in LENGTHS:
            chain = JsaConfig.model_validate({"proposals": m, "states": states})
            yield f"jsa, {states}", m, lambda draws, chain=chain: of_objective(found, chain, draws)
    for name, baseline in (("dro", True), ("dro, no baseline", False)):
        for m in LIST_LENGTHS:
            yield name, m, lambda draws, m=m, baseline=baseline: of_lists(found, m, baseline, draws)


@dataclass(frozen=True)
class Measured:
    """One estimator on one toy, relative to the exact gradient's length: the bias, and the standard error that it is
    known with; summed variances of both gradients; Hotelling's statistic with its degrees of freedom (0: no chance)."""

    bias: float
    error: float
    prior: float
    posterior: float
    statistic: float
    dimensions: int


def measured(found: Candidates, gradients: Gradients, of_marginal: bool = True) -> Measured:
    """Of the gradients of all runs; there is no statistic for an estimator of something else than the marginal's."""
    (prior, posterior), right = gradients, exact(found)
    length, spread = float(right.norm()), float(prior.var(0).sum())
    bias = float((prior.mean(0) - right).norm()) / length
    statistic, dimensions = (0.0, 0)
    if spread > 1e-12 and of_marginal:
        statistic, dimensions = hotelling(prior, right, true_posterior(found))
    error = (spread / len(prior)) ** 0.5 / length
    variances = (spread / length**2, float(posterior.var(0).sum()) / length**2)
    return Measured(bias, error, *variances, statistic, dimensions)


def hotelling(prior: Tensor, right: Tensor, often: Tensor) -> tuple[float, int]:
    """Hotelling's statistic of the error of the mean over runs, chi-squared without bias, and its degrees of freedom.

    Places where few chains are expected by `often` [K] are taken together, as cells of a chi-squared test are: their
    means are of a handful of visits, and a variance estimated from none or one makes the statistic anything.
    """
    expected = often * len(prior)
    cells = [[int(place)] for place in expected.argsort(descending=True) if expected[place] >= FEWEST]
    rest = [int(place) for place in (expected < FEWEST).nonzero()]
    if float(expected[rest].sum()) >= FEWEST:
        cells.append(rest)
    else:
        cells[-1] += rest
    # A gradient's sum over all scores is zero, so one cell, the largest, says nothing of its own.
    member = torch.zeros(len(often), len(cells) - 1, dtype=prior.dtype)
    for number, cell in enumerate(cells[1:]):
        member[cell, number] = 1.0
    error, each = (prior.mean(0) - right) @ member, prior @ member
    covariance = torch.atleast_2d(torch.cov(each.T))
    # A cell that no run visits has no variance to divide by: that of one draw from the target stands for it.
    shares = often @ member
    unseen = covariance.diagonal() < 1e-20
    covariance = (covariance + torch.diag(unseen * shares * (1 - shares))) / len(prior)
    return float(error @ torch.linalg.solve(covariance, error)), len(cells) - 1


def standardised(found: Sequence[Measured]) -> float:
    """z of the statistics' sum: above 2 is rare for an estimator without bias; NaN without chance."""
    dimensions = sum(one.dimensions for one in found)
    if not dimensions:
        return float("nan")
    return (sum(one.statistic for one in found) - dimensions) / (2 * dimensions) ** 0.5


def rows(runs: int, toys: int = TOYS) -> Iterator[dict[str, Any]]:
    """One row an estimator and `m`, the number of proposals or samples: means over the toys, and each toy's values."""
    found: dict[tuple[str, int], list[Measured]] = {}
    for seed in range(toys):
        question = toy(runs, seed)
        for name, m, case in cases(question):
            gradients = case(torch.Generator().manual_seed(1))
            one = measured(question, gradients, TARGETS[name] == MARGINAL)
            found.setdefault((name, m), []).append(one)
    for (name, m), each in found.items():
        yield {
            "estimator": name,
            "m": m,
            "target": TARGETS[name],
            "bias": fmean(one.bias for one in each),
            "standard error": fmean(one.error for one in each),
            "z": standardised(each),
            "variance, prior": fmean(one.prior for one in each),
            "variance, posterior": fmean(one.posterior for one in each),
            "z of each": [round(standardised([one]), 2) for one in each],
            "variances of each": [[one.prior, one.posterior] for one in each],
        }


def figures(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """z is of the kept chain, over all toys, and the largest of one; ratios of variances are means of each toy's, of
    both retrievers' scores together unless a name says which."""
    named = {(row["estimator"], row["m"]): row for row in found}
    kept, new = named["jsa, chain kept", M], named["jsa, all", M]
    sampled, with_baseline = named["vrag, sampled", M], named["vrag, sampled, baseline", M]
    over_sampled = _ratios(kept, sampled)
    return {
        "jsa_gradient_bias_z": kept["z"],
        "jsa_gradient_bias_z_largest_of_a_toy": max(kept["z of each"]),
        "jsa_gradient_bias_z_new_chain": new["z"],
        "jsa_relative_bias_new_chain": new["bias"],
        "jsa_variance_over_vrag": fmean(over_sampled),
        "jsa_variance_over_vrag_toys_below_1": float(sum(ratio < 1 for ratio in over_sampled)),
        "jsa_variance_over_vrag_with_baseline": fmean(_ratios(kept, with_baseline)),
        "jsa_prior_variance_over_vrag": fmean(_ratios(kept, sampled, of=slice(1))),
        "dro_variance_over_no_baseline": fmean(_ratios(named["dro", 8], named["dro, no baseline", 8])),
    }


def _ratios(ours: dict[str, Any], theirs: dict[str, Any], of: slice = slice(2)) -> list[float]:
    pairs = zip(ours["variances of each"], theirs["variances of each"], strict=True)
    return [sum(mine[of]) / sum(other[of]) for mine, other in pairs]


def draw(found: Sequence[dict[str, Any]], path: str) -> None:
    """Bias and variance against the number of proposals or lists, means over the toys."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "regrad"
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    panels = zip(figure.subplots(1, 2), ("bias", "variance, prior"), strict=True)
    lines = {
        "jsa, all": ("#0072b2", "o-", "JSA, all states of a new chain"),
        "jsa, last": ("#009e73", "o-", "JSA, last state of a new chain"),
        "dro": ("#d55e00", "s-", "DRO, lists of one passage"),
        "dro, no baseline": ("#e69f00", "s--", "the same without baseline"),
        "jsa, chain kept": ("#000000", "*", f"JSA, a chain kept over {KEPT_STEPS} visits"),
        "jsa, simplified": ("#56b4e9", "v", "JSA, simplified, a new chain"),
        "vrag, sampled": ("#cc79a7", "D", "VRAG, sampled"),
    }
    for axes, number in panels:
        for name, (colour, style, label) in lines.items():
            line = [row for row in found if row["estimator"] == name]
            axes.plot([row["m"] for row in line], [row[number] for row in line], style, color=colour, label=label)
        axes.set(xscale="log", yscale="log", xlabel="proposals, samples or lists m", title=number)
        axes.grid(alpha=0.25)
        if number == "bias":
            for name, style in ((f"marginal, top {TOP}", ":"), ("vrag, all", "-.")):
                (row,) = [row for row in found if row["estimator"] == name]
                axes.axhline(row["bias"], color="#7f7f7f", linestyle=style, label=f"{name}, by sums: no variance")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
