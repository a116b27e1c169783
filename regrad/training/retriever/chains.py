"""Metropolis independence sampling from p(h|x, y), for many questions at once (JSA-RAG, arXiv 2508.18168).

Proposals come from the posterior retriever q(h|x, y), all of them independent of the chain's state; one is accepted
with probability min(1, w(h') / w(h)), w(h) = p(h|x) p(y|x, h) / q(h|x, y). The chain's stationary distribution is then
p(h|x, y), however wrong q is, as long as q leaves nothing out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NO_STATE = -1
"""The state of a chain that has none yet: its first proposal is accepted."""


@dataclass(frozen=True)
class Chains:
    """The m states of each of B chains, as places among its K candidates, and how the proposals did.

    `states` is [B, m]; `accepted` [B] the share of accepted proposals, without that which a new chain starts from (nan
    if it was the only one); `effective` [B] the effective sample size of the m proposals by their weights, from 1 to m.
    """

    states: Tensor
    accepted: Tensor
    effective: Tensor

    def shares(self, candidates: int) -> Tensor:
        """How often each of K candidates is a state of its chain [B, K], as a share of m."""
        counts_BK = torch.zeros(len(self.states), candidates, device=self.states.device)
        counts_BK.scatter_add_(1, self.states, torch.ones_like(self.states, dtype=counts_BK.dtype))
        return counts_BK / self.states.shape[1]


def sample_chains(
    log_target_BK: Tensor,
    log_proposal_BK: Tensor,
    proposals: int,
    draws: torch.Generator,
    start_B: Tensor | None = None,
) -> Chains:
    """Run B chains of `proposals` steps each; log densities may lack their constants, -inf is never proposed.

    `start_B` are the states to continue from (`NO_STATE`: none); by default all chains are new.
    """
    # What has no probability weighs nothing, also where it is never proposed (-inf less -inf is no number).
    log_weight_BK = (log_target_BK - log_proposal_BK).masked_fill(torch.isneginf(log_target_BK), -torch.inf)
    # Drawn on the CPU, whatever the device: a run's draws are the same everywhere, and a resumed run repeats them.
    probabilities_BK = log_proposal_BK.double().softmax(1).cpu()
    proposed_Bm = torch.multinomial(probabilities_BK, proposals, replacement=True, generator=draws)
    uniform_Bm = torch.rand(proposed_Bm.shape, dtype=torch.float64, generator=draws)
    proposed_Bm = proposed_Bm.to(log_weight_BK.device)
    weights_Bm = log_weight_BK.double().gather(1, proposed_Bm)
    thresholds_Bm = uniform_Bm.to(log_weight_BK.device).log()
    state_B = proposed_Bm.new_full((len(proposed_Bm),), NO_STATE) if start_B is None else start_B.to(proposed_Bm.device)
    new_B = state_B == NO_STATE
    at_B = log_weight_BK.double().gather(1, state_B.clamp_min(0)[:, None])[:, 0]
    # A new chain weighs nothing: whatever is proposed first is accepted.
    at_B = torch.where(new_B, at_B.new_full((), -torch.inf), at_B)
    states, moves = [], []
    for step in range(proposals):
        accepted_B = thresholds_Bm[:, step] <= weights_Bm[:, step] - at_B
        # From a state without weight everything is accepted; inf - inf would say no.
        accepted_B |= torch.isneginf(at_B)
        state_B = torch.where(accepted_B, proposed_Bm[:, step], state_B)
        at_B = torch.where(accepted_B, weights_Bm[:, step], at_B)
        states.append(state_B)
        moves.append(accepted_B)
    accepted_Bm = torch.stack(moves, 1).double()
    judged_B = proposals - new_B.double()
    shares_Bm = weights_Bm.softmax(1)
    return Chains(
        torch.stack(states, 1),
        ((accepted_Bm.sum(1) - new_B.double()) / judged_B).float(),
        (1 / shares_Bm.square().sum(1)).float(),
    )
