"""A question with 40 passages whose marginal likelihood is a sum: what each estimator's gradient is off by, and varies.

Scores of the prior are drawn from N(0, 1), log-likelihoods from N(0, 2), and the posterior's scores are those of the
true posterior and noise from N(0, 1). Gradients are with respect to the scores: of the prior, for which the gradient of
log p(y|x) is known, and of the posterior, where each objective has a minimum of its own and only the variance counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from regrad.training.retriever.chains import NO_STATE
from regrad.training.retriever.config import JsaConfig, MarginalConfig, VragConfig
from regrad.training.retriever.objectives import Candidates, make_objective

PASSAGES, TOP = 40, 10
LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
KEPT_STEPS, KEPT_LENGTH = 40, 50

Gradients = tuple[Tensor, Tensor]
"""With respect to the scores of the prior and of the posterior, one row a run [N, K]."""


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


def exact(found: Candidates) -> Tensor:
    """The gradient of -log p(y|x) with respect to the prior's scores [K]."""
    posterior = (found.prior[0] + found.likelihood[0]).detach().softmax(0)
    return found.prior[0].detach().softmax(0) - posterior


def of_objective(found: Candidates, config: Any, draws: torch.Generator) -> Gradients:
    """By the library's objective."""
    loss = make_objective(config)(found, draws).loss.sum()
    parts = torch.autograd.grad(loss, (found.prior, found.posterior), allow_unused=True)
    prior, posterior = (torch.zeros_like(found.prior) if part is None else part for part in parts)
    return prior, posterior


def of_kept_chain(found: Candidates, draws: torch.Generator) -> Gradients:
    """JSA after its chain was kept over some visits of the question."""
    config = JsaConfig(proposals=KEPT_LENGTH, keep_chain=True)
    states = torch.full((len(found.prior),), NO_STATE)
    for _ in range(KEPT_STEPS):
        objected = make_objective(config)(Candidates(**{**vars(found), "start": states}), draws)
        assert objected.states is not None
        states = objected.states
    return of_objective(Candidates(**{**vars(found), "start": states}), config, draws)


def of_sampled_bound(found: Candidates, samples: int, draws: torch.Generator, baseline: bool) -> Gradients:
    """The bound's gradient from samples of the posterior by the score function; the baseline leaves one sample out."""
    log_p, log_q = found.prior.detach().log_softmax(1), found.posterior.detach().log_softmax(1)
    drawn = torch.multinomial(log_q.exp(), samples, replacement=True, generator=draws)
    rewards = (found.likelihood + log_p - log_q).gather(1, drawn)
    if baseline:
        rewards = rewards - (rewards.sum(1, keepdim=True) - rewards) / (samples - 1)
    one_hot = torch.nn.functional.one_hot(drawn, PASSAGES).double()
    prior = log_p.exp() - one_hot.mean(1)
    posterior = -(rewards[:, :, None] * (one_hot - log_q.exp()[:, None, :])).mean(1)
    return prior, posterior


def measured(name: str, gradients: Gradients, right: Tensor) -> dict[str, Any]:
    """Bias relative to the exact gradient's length; its z, over all directions; variances summed over scores."""
    prior, posterior = gradients
    error = prior.mean(0) - right
    covariance = torch.cov(prior.T) / len(prior)
    spread = float(prior.var(0).sum())
    dimensions = PASSAGES - 1
    # Without bias this is chi-squared with 39 degrees of freedom (Hotelling): standardised, above 2 is rare.
    z = float("nan")
    if spread > 1e-12:
        z = float(
            (error @ torch.linalg.pinv(covariance, hermitian=True) @ error - dimensions) / (2 * dimensions) ** 0.5
        )
    return {
        "estimator": name,
        "relative bias": float(error.norm() / right.norm()),
        "bias z": z,
        "variance, prior": spread,
        "variance, posterior": float(posterior.var(0).sum()),
    }


def rows(runs: int) -> Iterator[dict[str, Any]]:
    """One row an estimator; `m` is the number of proposals or samples."""
    found = toy(runs)
    right = exact(found)
    everywhere = torch.ones_like(found.by_prior)
    covered = Candidates(**{**vars(found), "by_prior": everywhere, "by_posterior": everywhere})
    cases: list[tuple[str, Callable[[torch.Generator], Gradients]]] = [
        (f"marginal, top {TOP}", lambda draws: of_objective(found, MarginalConfig(), draws)),
        ("marginal, all", lambda draws: of_objective(covered, MarginalConfig(), draws)),
        (f"vrag, top {TOP}", lambda draws: of_objective(found, VragConfig(), draws)),
        ("vrag, all", lambda draws: of_objective(covered, VragConfig(), draws)),
        ("vrag, sampled", lambda draws: of_sampled_bound(found, KEPT_LENGTH, draws, False)),
        ("vrag, sampled, baseline", lambda draws: of_sampled_bound(found, KEPT_LENGTH, draws, True)),
        ("jsa, chain kept", lambda draws: of_kept_chain(found, draws)),
    ]
    for name, case in cases:
        m = KEPT_LENGTH if "sampled" in name or "kept" in name else 0
        yield {"m": m, **measured(name, case(torch.Generator().manual_seed(1)), right)}
    for states in ("all", "last"):
        for m in LENGTHS:
            config = JsaConfig.model_validate({"proposals": m, "states": states})
            gradients = of_objective(found, config, torch.Generator().manual_seed(2))
            yield {"m": m, **measured(f"jsa, {states}", gradients, right)}


def figures(found: list[dict[str, Any]]) -> dict[str, float]:
    """`jsa_gradient_bias_z` is of the kept chain; the ratio of variances sums both retrievers' scores."""
    named = {(row["estimator"], row["m"]): row for row in found}
    kept, sampled = named["jsa, chain kept", KEPT_LENGTH], named["vrag, sampled", KEPT_LENGTH]
    with_baseline = named["vrag, sampled, baseline", KEPT_LENGTH]
    both = [row["variance, prior"] + row["variance, posterior"] for row in (kept, sampled, with_baseline)]
    return {
        "jsa_gradient_bias_z": kept["bias z"],
        "jsa_gradient_bias_z_new_chain": named["jsa, all", KEPT_LENGTH]["bias z"],
        "jsa_relative_bias_new_chain": named["jsa, all", KEPT_LENGTH]["relative bias"],
        "jsa_variance_over_vrag": both[0] / both[1],
        "jsa_variance_over_vrag_with_baseline": both[0] / both[2],
        "jsa_prior_variance_over_vrag": kept["variance, prior"] / sampled["variance, prior"],
    }


def draw(found: list[dict[str, Any]], path: str) -> None:
    """Relative bias against the length of the chain."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "regrad"
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, colour in (("jsa, all", "#0072b2"), ("jsa, last", "#009e73")):
        line = [row for row in found if row["estimator"] == name]
        label = f"JSA, {name.split(', ')[1]} states of a new chain".replace("last states", "last state")
        axes.plot([r["m"] for r in line], [r["relative bias"] for r in line], "o-", color=colour, label=label)
    flat = {
        f"marginal, top {TOP}": ("#d55e00", f"marginal over the prior's top {TOP}"),
        "vrag, all": ("#cc79a7", "VRAG over all passages"),
        "jsa, chain kept": ("#7f7f7f", f"JSA, a chain kept over {KEPT_STEPS} visits, m = {KEPT_LENGTH}"),
    }
    for row in found:
        if row["estimator"] in flat:
            colour, label = flat[row["estimator"]]
            axes.axhline(row["relative bias"], color=colour, linestyle="--", label=label)
    axes.set(xscale="log", yscale="log", xlabel="proposals m", ylabel="bias of the gradient, relative to its length")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
