"""Metropolis independence sampling against its stationary distribution, which is known."""

from __future__ import annotations

import torch

from regrad.training.retriever.chains import NO_STATE, sample_chains

TARGET = torch.tensor([0.5, 0.05, 0.25, 0.2]).log()
PROPOSAL = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares_of_last(chains: int, proposals: int, start: torch.Tensor | None = None) -> torch.Tensor:
    rows = (chains, 1)
    found = sample_chains(TARGET.repeat(rows), PROPOSAL.repeat(rows), proposals, draws(), start)
    return torch.bincount(found.states[:, -1], minlength=4) / chains


def total_variation(shares: torch.Tensor) -> float:
    return float((shares - TARGET.exp()).abs().sum() / 2)


def test_a_long_chain_has_the_target_as_its_distribution_whatever_it_proposes_from() -> None:
    # 20,000 independent chains: of four shares, a total variation of 0.01 is about three standard errors.
    assert total_variation(shares_of_last(20_000, 30)) < 0.01


def test_one_step_is_a_draw_from_the_proposal_and_more_steps_come_nearer() -> None:
    one = shares_of_last(20_000, 1)
    assert float((one - PROPOSAL.exp()).abs().sum() / 2) < 0.01
    distances = [total_variation(shares_of_last(20_000, m)) for m in (1, 3, 8)]
    assert distances[0] > distances[1] > distances[2]


def test_one_step_keeps_the_target_if_the_chain_is_already_there() -> None:
    start = torch.multinomial(TARGET.exp(), 20_000, replacement=True, generator=draws(1))
    assert total_variation(shares_of_last(20_000, 1, start)) < 0.01


def test_states_follow_from_the_ratio_of_weights() -> None:
    """The same draws, step by step, in plain numbers."""
    found = sample_chains(TARGET[None], PROPOSAL[None], 40, draws(5))
    again = draws(5)
    proposed = torch.multinomial(PROPOSAL.double().softmax(0)[None], 40, replacement=True, generator=again)[0].tolist()
    uniform = torch.rand(1, 40, dtype=torch.float64, generator=again)[0].tolist()
    weight = (TARGET - PROPOSAL).exp().tolist()
    state, expected, accepted = -1, [], 0
    for candidate, draw in zip(proposed, uniform, strict=True):
        if state < 0:
            state = candidate
        elif draw <= weight[candidate] / weight[state]:
            state, accepted = candidate, accepted + 1
        expected.append(state)
    assert found.states[0].tolist() == expected
    assert float(found.accepted[0]) == torch.tensor(accepted / 39).item()


def test_proposals_from_the_target_are_all_accepted_and_count_fully() -> None:
    found = sample_chains(TARGET[None], TARGET[None] + 3.0, 25, draws(), torch.tensor([NO_STATE]))
    assert float(found.accepted[0]) == 1.0
    assert abs(float(found.effective[0]) - 25) < 1e-4


def test_what_has_no_probability_is_never_a_state_and_a_state_without_weight_is_left_at_once() -> None:
    absent = torch.tensor([[0.0, -torch.inf, 0.0]])
    found = sample_chains(absent, absent, 200, draws(), torch.tensor([1]))
    assert 1 not in found.states
    assert found.shares(3).sum() == 1
