"""Each objective against sums over everything, on few passages."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from regrad.training.retriever.chains import NO_STATE
from regrad.training.retriever.config import (
    DistillConfig,
    DroConfig,
    JsaConfig,
    MarginalConfig,
    ObjectiveConfig,
    VragConfig,
)
from regrad.training.retriever.objectives import (
    Candidates,
    Lists,
    draw_orderings,
    make_objective,
    ordering_log_probability,
)

B, K = 3, 5


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_present(prior: Tensor, posterior: Tensor, likelihood: Tensor) -> Candidates:
    """Candidates of which each retriever found every one."""
    everywhere = torch.ones_like(prior, dtype=torch.bool)
    return Candidates(prior, posterior, likelihood, everywhere, everywhere, everywhere)


def scores(seed: int = 0, rows: int = B) -> Candidates:
    prior, posterior, likelihood = torch.randn(3, B, K, dtype=torch.float64, generator=draws(seed))
    repeated = [part.repeat(rows // B, 1) for part in (prior, posterior, 2 * likelihood)]
    return all_present(repeated[0].requires_grad_(), repeated[1].requires_grad_(), repeated[2])


def gradients(config: ObjectiveConfig, found: Candidates) -> tuple[Tensor, Tensor]:
    loss = make_objective(config)(found, draws()).loss.sum()
    prior, posterior = torch.autograd.grad(loss, (found.prior, found.posterior), allow_unused=True)
    zero = torch.zeros_like(found.prior)
    return (zero if prior is None else prior), (zero if posterior is None else posterior)


def true_posterior(found: Candidates) -> Tensor:
    return (found.prior + found.likelihood).softmax(1).detach()


def test_the_marginal_is_the_likelihood_of_the_answer_if_k_covers_every_passage() -> None:
    found = scores()
    loss = make_objective(MarginalConfig())(found, draws()).loss
    expected = (found.prior.softmax(1) * found.likelihood.exp()).sum(1).log()
    torch.testing.assert_close(loss, -expected)
    prior, posterior = gradients(MarginalConfig(), found)
    torch.testing.assert_close(prior, found.prior.softmax(1).detach() - true_posterior(found))
    assert not posterior.any()


def test_vrag_is_a_bound_that_is_tight_where_the_posterior_is_true() -> None:
    found = scores()
    exact = make_objective(MarginalConfig())(found, draws()).loss
    assert (make_objective(VragConfig())(found, draws()).loss > exact).all()
    tight = all_present(found.prior, true_posterior(found).log(), found.likelihood)
    torch.testing.assert_close(make_objective(VragConfig())(tight, draws()).loss, exact)


def expected_shares(found: Candidates, proposals: int) -> Tensor:
    """E[c_h] of new chains [B, K], by the powers of the chain's transition matrix."""
    log_q = found.posterior[:B].detach().log_softmax(1)
    weight = (found.prior[:B].detach().log_softmax(1) + found.likelihood[:B] - log_q).exp()
    moves = log_q.exp()[:, None, :] * (weight[:, None, :] / weight[:, :, None]).clamp_max(1)
    stays = 1 - (moves.sum(2) - moves.diagonal(dim1=1, dim2=2))
    transition = moves - torch.diag_embed(moves.diagonal(dim1=1, dim2=2)) + torch.diag_embed(stays)
    state, total = log_q.exp(), torch.zeros(B, K, dtype=torch.float64)
    for _ in range(proposals):
        total += state
        state = torch.einsum("bk,bkl->bl", state, transition)
    return total / proposals


def test_the_expected_shares_become_the_true_posterior_as_the_chain_grows() -> None:
    found = scores()
    distances = [
        float((expected_shares(found, m) - true_posterior(found)).abs().max()) for m in (10, 100, 1000, 10_000)
    ]
    assert distances == sorted(distances, reverse=True)
    # The first states count with weight 1/m each, so the bias falls as 1/m.
    assert distances[3] < 0.12 * distances[2] < 0.02


@pytest.mark.parametrize("proposals", [1, 5, 50])
def test_the_gradient_of_jsa_is_what_the_chain_says_in_expectation_for_prior_and_posterior(proposals: int) -> None:
    found = scores(rows=3 * 4000)
    prior, posterior = (part.reshape(-1, B, K).mean(0) for part in gradients(JsaConfig(proposals=proposals), found))
    shares = expected_shares(found, proposals)
    # The mean of 4,000 chains' shares, each between 0 and 1: a standard error of at most 0.008.
    torch.testing.assert_close(prior, found.prior[:B].softmax(1).detach() - shares, atol=0.03, rtol=0)
    torch.testing.assert_close(posterior, found.posterior[:B].softmax(1).detach() - shares, atol=0.03, rtol=0)


def test_only_the_last_state_counts_if_asked_for_and_it_is_nearer_to_the_true_posterior() -> None:
    found = scores(rows=3 * 4000)
    config = JsaConfig(proposals=50)
    last = config.model_copy(update={"states": "last"})
    exact = found.prior[:B].softmax(1).detach() - true_posterior(found)[:B]
    means = [gradients(each, found)[0].reshape(-1, B, K).mean(0) for each in (config, last)]
    assert (means[1] - exact).abs().max() < (means[0] - exact).abs().max()


def test_simplified_jsa_proposes_from_the_prior_and_trains_no_posterior() -> None:
    found = scores(rows=3 * 4000)
    prior, posterior = gradients(JsaConfig(proposals=5, simplified=True), found)
    shares = expected_shares(all_present(found.prior, found.prior, found.likelihood), 5)
    expected = found.prior[:B].softmax(1).detach() - shares
    torch.testing.assert_close(prior.reshape(-1, B, K).mean(0), expected, atol=0.03, rtol=0)
    assert not posterior.any()


def test_a_kept_chain_goes_on_from_its_state_and_a_new_one_does_not() -> None:
    found = scores()
    kept = Candidates(**{**vars(found), "start": torch.tensor([4, 4, 4])})
    # One passage that no other can beat: a chain that is there stays.
    kept = Candidates(**{**vars(kept), "likelihood": torch.tensor([0.0, 0, 0, 0, 1e4]).double().repeat(B, 1)})
    rare = Candidates(**{**vars(kept), "posterior": torch.tensor([0.0, 0, 0, 0, -1e3]).double().repeat(B, 1)})
    keeping = make_objective(JsaConfig(keep_chain=True))(rare, draws())
    assert keeping.states is not None and keeping.states.tolist() == [4, 4, 4]
    starting = make_objective(JsaConfig())(rare, draws())
    assert starting.states is not None and 4 not in starting.states.tolist()


def test_the_temperature_of_the_generator_divides_its_log_likelihoods_in_the_chain_alone() -> None:
    found = scores(rows=3 * 4000)
    prior, _ = (part.reshape(-1, B, K).mean(0) for part in gradients(JsaConfig(temperature_lm=4.0), found))
    colder = all_present(found.prior, found.posterior, found.likelihood / 4)
    expected = found.prior[:B].softmax(1).detach() - expected_shares(colder, 50)
    torch.testing.assert_close(prior, expected, atol=0.03, rtol=0)
    # What the chain leaves out of the loss is no part of it.
    plain = found.prior[:B].softmax(1).detach() - expected_shares(found, 50)
    assert float((plain - expected).abs().max()) > 0.1
    trained = replace(found, likelihood=found.likelihood.clone().requires_grad_())
    loss = make_objective(JsaConfig(temperature_lm=4.0))(trained, draws()).loss.sum()
    (generator,) = torch.autograd.grad(loss, trained.likelihood)
    torch.testing.assert_close(-generator.sum(1), torch.ones(len(generator), dtype=torch.float64))


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_beta_weighs_the_divergence_of_vrag(beta: float) -> None:
    found = scores()
    q, log_q, log_p = (
        found.posterior.softmax(1),
        found.posterior.log_softmax(1),
        found.prior.log_softmax(1),
    )
    expected = -(q * found.likelihood).sum(1) + beta * (q * (log_q - log_p)).sum(1)
    torch.testing.assert_close(make_objective(VragConfig(beta=beta))(found, draws()).loss, expected)


@pytest.mark.parametrize("direction", ["to-prior", "from-prior"])
def test_distillation_is_zero_where_the_prior_ranks_as_the_likelihoods_do(direction: str) -> None:
    config = DistillConfig.model_validate({"direction": direction, "temperature": 2.0})
    found = scores()
    assert (make_objective(config)(found, draws()).loss > 0).all()
    same = all_present((found.likelihood / 2).requires_grad_(), found.posterior, found.likelihood)
    torch.testing.assert_close(make_objective(config)(same, draws()).loss, torch.zeros(B, dtype=torch.float64))


@pytest.mark.parametrize(
    "config",
    [
        MarginalConfig(),
        VragConfig(),
        VragConfig(over="union"),
        JsaConfig(),
        JsaConfig(simplified=True),
        DistillConfig(),
    ],
    ids=lambda config: config.kind,
)
def test_places_that_are_not_there_change_nothing(config: ObjectiveConfig) -> None:
    found = scores()
    wider = [torch.cat([part, torch.full((B, 2), 7.0).double()], 1).detach() for part in (found.prior, found.posterior)]
    there = torch.arange(K + 2).expand(B, -1) < K
    padded = Candidates(
        wider[0].requires_grad_(),
        wider[1].requires_grad_(),
        torch.cat([found.likelihood, torch.zeros(B, 2)], 1),
        *(there, there, there),
    )
    for alone, beside in zip(gradients(config, found), gradients(config, padded), strict=True):
        torch.testing.assert_close(beside[:, :K], alone)
        assert not beside[:, K:].any()


def test_vrag_over_the_posteriors_best_does_not_see_the_others() -> None:
    found = scores()
    mine = torch.arange(K).expand(B, -1) < 2
    split = Candidates(found.prior, found.posterior, found.likelihood, mine | ~mine, ~mine, mine)
    prior, _ = gradients(VragConfig(), split)
    assert prior[:, :2].any() and not prior[:, 2:].any()
    prior, _ = gradients(VragConfig(over="union"), split)
    assert prior[:, 2:].any()


def every_list(length: int) -> Tensor:
    """All ordered lists of `length` of the K places, for each question [B, m, L]."""
    return torch.tensor(list(permutations(range(K), length))).expand(B, -1, -1)


@pytest.mark.parametrize("length", [1, 2, K])
def test_the_probabilities_of_all_lists_add_up_to_one(length: int) -> None:
    found = scores()
    log_p = ordering_log_probability(found.prior, found.present, every_list(length))
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(B, dtype=torch.float64))


def test_lists_are_drawn_as_often_as_they_are_probable() -> None:
    found = scores()
    drawn = draw_orderings(found.prior.detach(), found.present, 20_000, 2, draws())
    expected = ordering_log_probability(found.prior, found.present, every_list(2)).exp().detach()
    for row in range(B):
        counts = torch.stack([(drawn[row] == one).all(1).sum() for one in every_list(2)[row]]) / 20_000
        # A share of 20,000 draws has a standard error of at most 0.0036.
        torch.testing.assert_close(counts.double(), expected[row], atol=0.015, rtol=0)


def test_a_list_has_no_place_that_is_not_there_and_ends_where_there_are_no_more() -> None:
    found = scores()
    there = torch.tensor([[True, False, True, False, False]]).expand(B, -1)
    drawn = draw_orderings(found.prior.detach(), there, 50, 3, draws())
    assert drawn[..., :2].unique().tolist() == [0, 2] and (drawn[..., 2] == NO_STATE).all()
    log_p = ordering_log_probability(found.prior, there, drawn)
    first = found.prior[:, [0, 2]].log_softmax(1)
    expected = torch.where(drawn[..., 0] == 0, first[:, :1], first[:, 1:])
    torch.testing.assert_close(log_p, expected)


def listed(found: Candidates, orderings: Tensor, likelihood: Tensor, drawn_from: Tensor | None = None) -> Candidates:
    """With lists that were drawn by these scores [B, K], or by those of the prior as it is."""
    scores_BK = found.prior if drawn_from is None else drawn_from
    log_drawn = ordering_log_probability(scores_BK, found.present, orderings).detach()
    return Candidates(**{**vars(found), "lists": Lists(orderings, likelihood, log_drawn)})


def test_with_many_lists_the_gradient_of_dro_is_that_of_the_answers_likelihood() -> None:
    """log p(y|x) = log sum over all lists z of p(z|x) p(y|x, z), of which the sum has 20 terms here."""
    found = scores()
    value = 2 * torch.randn(B, len(every_list(2)[0]), dtype=torch.float64, generator=draws(7))
    exact = (ordering_log_probability(found.prior, found.present, every_list(2)) + value).logsumexp(1).sum()
    (expected,) = torch.autograd.grad(-exact, found.prior)
    errors = []
    for samples in (10, 20_000):
        drawn = draw_orderings(found.prior.detach(), found.present, samples, 2, draws(3))
        which = (drawn[:, :, None] == every_list(2)[:, None]).all(3).int().argmax(2)
        likelihood = value.gather(1, which).requires_grad_()
        loss = make_objective(DroConfig())(listed(found, drawn, likelihood), draws()).loss.sum()
        prior, generator = torch.autograd.grad(loss, (found.prior, likelihood))
        errors.append(float((prior - expected).norm() / expected.norm()))
        # A generator learns from each list by its weight.
        torch.testing.assert_close(generator, -likelihood.detach().softmax(1))
    assert errors[1] < 0.03 < errors[0]


def of_every_pair_of_lists(config: DroConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Mean [K] and summed variance of the prior's gradient with two lists, over all pairs that can be drawn."""
    one, value = torch.randn(K, dtype=torch.float64, generator=draws(seed)), torch.randn(20, generator=draws(seed + 1))
    lists = every_list(2)[0]
    first, second = torch.cartesian_prod(torch.arange(len(lists)), torch.arange(len(lists))).unbind(1)
    prior = one.repeat(len(first), 1).requires_grad_()
    which = torch.stack([first, second], 1)
    found = listed(all_present(prior, prior, torch.zeros_like(prior)), lists[which], 3 * value[which].double())
    (gradient,) = torch.autograd.grad(make_objective(config)(found, draws()).loss.sum(), prior)
    assert found.lists is not None
    often = found.lists.log_drawn.sum(1, keepdim=True).exp()
    torch.testing.assert_close(often.sum(), torch.ones((), dtype=torch.float64))
    mean = (often * gradient).sum(0)
    return mean, (often * (gradient - mean).square()).sum()


@pytest.mark.parametrize("seed", range(5))
def test_dros_baseline_leaves_the_expected_gradient_as_it_is_and_takes_variance_from_it(seed: int) -> None:
    mean, variance = of_every_pair_of_lists(DroConfig(samples=2), seed)
    as_published, more = of_every_pair_of_lists(DroConfig(samples=2, baseline=False), seed)
    torch.testing.assert_close(mean, as_published)
    assert variance < 0.6 * more


def test_later_in_an_iteration_the_gradient_of_dro_is_that_of_its_maximisation() -> None:
    """Lists are then of another distribution; the baseline must not pull the selector back to it."""
    found, value = scores(), torch.randn(B, 20, dtype=torch.float64, generator=draws(7))
    began = found.prior.detach() + torch.randn(B, K, dtype=torch.float64, generator=draws(8))
    posterior = (ordering_log_probability(began, found.present, every_list(2)) + value).softmax(1)
    exact = (posterior * ordering_log_probability(found.prior, found.present, every_list(2))).sum()
    (expected,) = torch.autograd.grad(-exact, found.prior)
    drawn = draw_orderings(began, found.present, 20_000, 2, draws(3))
    which = (drawn[:, :, None] == every_list(2)[:, None]).all(3).int().argmax(2)
    for baseline in (True, False):
        loss = make_objective(DroConfig(baseline=baseline))(
            listed(found, drawn, value.gather(1, which), began), draws()
        )
        (gradient,) = torch.autograd.grad(loss.loss.sum(), found.prior)
        # 20,000 lists: an error of about 1 in the root of that for each of a few numbers.
        assert float((gradient - expected).norm() / expected.norm()) < 0.04


def test_lists_that_answer_alike_move_nothing() -> None:
    found = scores()
    drawn = draw_orderings(found.prior.detach(), found.present, 8, 2, draws())
    loss = make_objective(DroConfig())(listed(found, drawn, torch.full((B, 8), -3.0).double()), draws()).loss.sum()
    (gradient,) = torch.autograd.grad(loss, found.prior)
    assert float(gradient.abs().max()) < 1e-12


def test_a_single_list_would_always_weigh_one_and_is_refused() -> None:
    with pytest.raises(ValidationError):
        DroConfig(samples=1)


@pytest.mark.parametrize(("config", "judged"), [(JsaConfig(proposals=1), False), (JsaConfig(proposals=2), True)])
def test_what_a_new_chain_starts_from_counts_in_no_acceptance_rate(config: JsaConfig, judged: bool) -> None:
    numbers = make_objective(config)(scores(), draws()).numbers
    assert ("acceptance" in numbers) == judged and numbers["effective_sample"] >= 1


def test_the_acceptance_rate_is_that_of_the_chains_in_which_something_was_judged() -> None:
    """With one proposal a new chain has nothing that is, and a chain that goes on has one."""
    config = JsaConfig(proposals=1, keep_chain=True)
    new, going_on = torch.full((B,), NO_STATE), torch.zeros(B, dtype=torch.long)
    assert "acceptance" not in make_objective(config)(replace(scores(), start=new), draws()).numbers
    alike = replace(scores(), likelihood=torch.zeros(B, K).double(), posterior=scores().prior)  # all are accepted
    for start in (going_on, torch.where(torch.arange(B) == 0, going_on, new)):
        assert make_objective(config)(replace(alike, start=start), draws()).numbers["acceptance"] == 1
