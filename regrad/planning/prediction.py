"""How fast a configuration would answer: a closed loop of users over stages that share a machine's cores.

After RAGO (arXiv 2503.14649, section 5): stages that share a pool take turns, so their times for an answer add up, and
the pipeline is as fast as its slowest group (the paper prints the largest rate of the groups; the least is meant).
With N users who ask again when they have their answer, latency is N over the rate (Little's law).

    demand(c)  = Σ over deployments of what one answer computes in it: stage curves at c's batch sizes, plus the
                 server's own work, which is what a real server was observed to compute beyond them
    rate(c, N) = min( cores · e(N / cores) / demand(c),            all processes share the cores
                      replicas · threads / demand on one thread,   a deployment's replicas are so many threads
                      generators / time on their GPU,              where the model runs on one
                      N / latency alone(c) )                       nobody has more than one question on its way

`e`, the share of the cores that are kept busy by so many users a core, and the server's own work by the users of a
gateway, are read off the observed loads, between which they are interpolated in the logarithm of the users. Work
falls as more users share it, so it is its logarithm, too, that is taken to be straight: of three servers that were
measured at 4, 16 and 64 users the work at 16 is then found within 3 to 11%, where straight lines said 15 to 37% too
much. (Not by users for each place where micro-batches form: one place instead of two was measured to save a quarter
of what that says, which is what the stages save.) What RAGO does not have, as its times are simulated, is this
observation; what both lack is arrivals at random.

A server that is embedded is predicted from the loads of one that is embedded, and one that is not from those of the
other: calls between processes are what they differ in, and no curve of a stage has them. The stages of retriever and
bank loader are then the gateways' work, and each gateway searches in a thread beside that of its event loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from regrad.planning.profile import ROLES, Bank, Candidate, Machine, ObservedServer, Profile

_ALL = (*ROLES, "rest", "asking")


@dataclass(frozen=True)
class Prediction:
    """Of a configuration with so many users: answers a second, seconds to half of the answers and to their first token.

    `demand` is the processor's time for an answer, users included; `bottleneck` is what bounds the rate.
    """

    users: int
    rate: float
    p50: float
    first_token: float
    demand: float
    bottleneck: str


@dataclass(frozen=True)
class Batches:
    """Requests that travel together in a micro-batch, and rows in a generator's step."""

    grouped: float
    rows: float


@dataclass(frozen=True)
class _Fitted:
    """What was read off the loads of one observed server.

    By role: all its work by users of a gateway, what of it the stages have, and the cores that one replica keeps busy.
    By users for each core: the share of the cores that is busy, and the median latency over the mean. `calls` are the
    seconds of one answer alone beyond its stages; `overlap` is how many times as quick an answer was as these and its
    stages say.
    """

    spent: Mapping[str, _Between]
    in_stages: Mapping[str, _Between]
    threads: Mapping[str, float]
    busy: _Between
    skew: _Between
    calls: float
    overlap: float


class Predictor:
    """A profile as a model of speed. `bank` is the one to be served, by default the profile's.

    Questions are taken to ask for all atoms alike, so a cache of half of the bank has half of them. `disk_share` is the
    part of a remote bank that the disk tier holds.
    """

    def __init__(self, profile: Profile, bank: Bank | None = None, disk_share: float = 1.0) -> None:
        self._profile = profile
        self._bank = profile.bank  # what was observed was of this one
        self._disk_share = disk_share
        self._fitted = {embedded: self._fit(server) for embedded, server in profile.servers.items()}
        self._bank = bank or profile.bank

    def knows(self, embedded: bool) -> bool:
        """Whether servers that are embedded, or those that are not, can be predicted: one of them was observed."""
        return embedded in self._fitted

    def _fit(self, server: ObservedServer) -> _Fitted:
        own, loads, cores = server.configuration, server.observed, self._profile.machine.cores
        first = loads[0]
        calls = first.users / first.rate - self._seconds(own, self.batches(own, first.users))
        # No bound is below what was seen: stages may be quicker in the server than they were by themselves.
        seen = [one.rate * self._alone(own, self.batches(own, one.users), calls) / one.users for one in loads]
        stages = [self._processor_work(own, self.batches(own, one.users)) for one in loads]
        crowds = [self._crowd(own, one.users) for one in loads]

        def shared(found: Sequence[Mapping[str, float]]) -> dict[str, _Between]:
            pairs = {role: [(x, each.get(role, 0.0)) for x, each in zip(crowds, found, strict=True)] for role in _ALL}
            return {role: _Between(points, by_ratio=True) for role, points in pairs.items()}

        return _Fitted(
            spent=shared([one.processor for one in loads]),
            in_stages=shared(stages),
            threads={role: self._most_threads(server, role) for role in own.deployments},
            busy=_Between([(one.users / cores, one.rate * sum(one.processor.values()) / cores) for one in loads]),
            skew=_Between([(one.users / cores, one.p50 * one.rate / one.users) for one in loads]),
            calls=calls,
            overlap=max(1.0, *seen),
        )

    def predict(self, candidate: Candidate, machine: Machine, users: int) -> Prediction:
        """Speed of a configuration, of those that it `knows`, on a machine with so many users."""
        fitted, batches = self._fitted[candidate.embedded], self.batches(candidate, users)
        demands = self._demands(fitted, candidate, batches, users)
        per_core = users / machine.cores
        alone = self._alone(candidate, batches, fitted.calls)
        bounds = {
            "cores": machine.cores * fitted.busy(per_core) / sum(demands.values()),
            "latency": users * fitted.overlap / alone,
            **{
                role: candidate.replicas(role) * threads / self._on_a_thread(candidate, batches, role, demands[role])
                for role, threads in fitted.threads.items()
                if demands[role] > 0
            },
        }
        if self._profile.generator_on_gpu:
            bounds["gpu"] = candidate.generator / self._generator_work(batches)
        bottleneck = min(bounds, key=bounds.__getitem__)
        rate = bounds[bottleneck]
        p50 = users / rate * fitted.skew(per_core)
        after_first = self._decode(batches, self._profile.stages.decode.seconds)
        first_token = p50 * (1 - min(1.0, after_first / alone))
        return Prediction(users, rate, p50, first_token, sum(demands.values()), bottleneck)

    def _alone(self, candidate: Candidate, batches: Batches, calls: float) -> float:
        """Seconds of one answer with the machine to itself: calls between processes and stages."""
        after_first = self._decode(batches, self._profile.stages.decode.seconds)
        return max(calls + self._seconds(candidate, batches), after_first, 1e-6)

    def batches(self, candidate: Candidate, users: int) -> Batches:
        """What travels and is decoded together.

        One micro-batch gathers while another one is under way, so half of the users of a place are in it. The rows of
        a step are at least a micro-batch, and else the users times the share of an answer's time in the generator.
        """
        grouped = 1.0
        if not self._profile.workload.alone:
            grouped = min(candidate.most_grouped, max(1.0, self._places(candidate, users) / 2))
        rows = min(candidate.rows, grouped)
        # The share depends on the rows, and they on it: a few turns settle it.
        for _ in range(8):
            demands = self._stage_work(candidate, Batches(grouped, rows))
            generating = demands["generator"] / max(1e-12, sum(demands.values()))
            before, rows = rows, min(candidate.rows, max(grouped, users * generating / candidate.generator))
            if rows == before:
                break
        return Batches(grouped, rows)

    def memory_bytes(self, candidate: Candidate) -> int:
        """Of all processes, with indexes, caches, and models with the keys and values of full batches."""
        memory = self._profile.memory
        indexes = candidate.retriever * memory.index
        caches = candidate.bank_loader * candidate.cache_bytes
        models = 0 if self._profile.generator_on_gpu else candidate.generator * self.model_bytes(candidate)
        return candidate.processes * memory.process + indexes + caches + models

    def model_bytes(self, candidate: Candidate) -> int:
        """Of one generator: the model, and keys and values of a full batch."""
        memory = self._profile.memory
        return memory.model + math.ceil(self._cached_tokens(candidate) * memory.token)

    def gpu_bytes(self, candidate: Candidate) -> int:
        """Of one generator, the same on the fullest of its GPUs."""
        parts, tokens = self._profile.memory.parts, self._cached_tokens(candidate)
        if not parts:
            return self.model_bytes(candidate)
        return max(part.model + math.ceil(tokens * part.token) for part in parts)

    def _cached_tokens(self, candidate: Candidate) -> float:
        work = self._profile.workload
        return candidate.rows * (work.prompt_tokens + work.max_new_tokens)

    def _demands(self, fitted: _Fitted, candidate: Candidate, batches: Batches, users: int) -> dict[str, float]:
        """Seconds of the processor for an answer, by role: what the observed server spent, with these stages for its.

        Its own work is below nothing where a stage took longer by itself than in the server: only what a configuration
        changes in the stages counts then, and an observed load is predicted as it was observed.
        """
        stages = self._processor_work(candidate, batches)
        crowd = self._crowd(candidate, users)
        own = {role: fitted.spent[role](crowd) - fitted.in_stages[role](crowd) for role in _ALL}
        return {role: max(0.0, own[role] + stages.get(role, 0.0)) for role in _ALL}

    def _processor_work(self, candidate: Candidate, batches: Batches) -> dict[str, float]:
        """What the stages take of the processor for an answer, by the role in whose processes they do."""
        work = self._stage_work(candidate, batches)
        if self._profile.generator_on_gpu:
            work["generator"] = 0.0
        if candidate.embedded:
            work["gateway"] = work.pop("retriever") + work.pop("bank_loader")
        return work

    def _on_a_thread(self, candidate: Candidate, batches: Batches, role: str, demand: float) -> float:
        """Of a role's demand the busiest thread's: an embedded gateway searches beside its event loop."""
        if not (candidate.embedded and role == "gateway"):
            return demand
        searching = min(demand, self._stage_work(candidate, batches)["retriever"])
        return max(searching, demand - searching)

    def _stage_work(self, candidate: Candidate, batches: Batches) -> dict[str, float]:
        """Busy seconds for an answer of what the stage curves have, by role."""
        stages, grouped = self._profile.stages, batches.grouped
        found = {"retriever": 0.0, "bank_loader": 0.0, "generator": self._generator_work(batches)}
        if stages.retrieve is not None:
            found["retriever"] = stages.retrieve.busy(grouped) / grouped
        for tier, share in self._tiers(candidate).items():
            found["bank_loader"] += share * stages.load[tier].busy(grouped) / grouped
        return found

    def _generator_work(self, batches: Batches) -> float:
        stages, grouped = self._profile.stages, min(batches.grouped, batches.rows)
        work = stages.prefill.busy(grouped) / grouped
        work += self._decode(batches, lambda rows: stages.decode.busy(rows) / rows)
        return work + (stages.online.busy(1) if stages.online else 0.0)

    def _decode(self, batches: Batches, of_a_step: Callable[[float], float]) -> float:
        """What the steps after the first token take of an answer."""
        return (self._profile.workload.answer_tokens - 1) * of_a_step(batches.rows)

    def _seconds(self, candidate: Candidate, batches: Batches) -> float:
        """The stages one after the other, of the clock, with the machine to themselves."""
        stages, grouped = self._profile.stages, batches.grouped
        total = stages.prefill.seconds(min(grouped, batches.rows)) + self._decode(batches, stages.decode.seconds)
        total += stages.retrieve.seconds(grouped) if stages.retrieve else 0.0
        total += stages.online.seconds(1) if stages.online else 0.0
        tiers = self._tiers(candidate)
        return total + sum(share * stages.load[tier].seconds(grouped) for tier, share in tiers.items())

    def _tiers(self, candidate: Candidate) -> Mapping[str, float]:
        """The share of the atoms that each tier has."""
        measured = self._profile.stages.load
        if not measured:
            return {}
        remembered = min(1.0, candidate.cache_bytes / max(1, self._bank.bytes))
        shares = {"memory": remembered, "disk": 0.0, "store": 0.0}
        on_disk = self._disk_share if "store" in measured else 1.0
        shares["disk"] = (1 - remembered) * on_disk
        shares["store"] = (1 - remembered) * (1 - on_disk)
        if "disk" not in measured:
            shares["store"] += shares.pop("disk")
        return {tier: share for tier, share in shares.items() if tier in measured}

    def _places(self, candidate: Candidate, users: float) -> float:
        """Users for each place where a micro-batch forms."""
        if self._profile.workload.alone:
            return 1.0
        return users / (candidate.gateway * candidate.at_once)

    def _crowd(self, candidate: Candidate, users: float) -> float:
        """Users of a gateway, by whom its work for an answer is known."""
        return 1.0 if self._profile.workload.alone else users / candidate.gateway

    def _most_threads(self, server: ObservedServer, role: str) -> float:
        """So many times what one thread can was one replica seen to do; at least once."""
        own = server.configuration
        seen = [
            one.rate
            * self._on_a_thread(own, self.batches(own, one.users), role, one.processor.get(role, 0.0))
            / own.replicas(role)
            for one in server.observed
        ]
        return max(1.0, *seen)


class _Between:
    """Observed (x, y), interpolated in the logarithm of x; beyond the ends the nearest one.

    `by_ratio`: half-way between two values above 0 is not their mean but what is as many times the one as the other is
    times it.
    """

    def __init__(self, points: Sequence[tuple[float, float]], by_ratio: bool = False) -> None:
        self._by_ratio = by_ratio
        # Several loads may have the same x, as all have where no micro-batches form: then it is their mean.
        values: dict[float, list[float]] = {}
        for x, y in points:
            values.setdefault(math.log2(x), []).append(y)
        self._points = sorted((x, sum(ys) / len(ys)) for x, ys in values.items())

    def __call__(self, x: float) -> float:
        at, points = math.log2(x), self._points
        if at <= points[0][0]:
            return points[0][1]
        for (left, y), (right, next_y) in pairwise(points):
            if at <= right:
                share = (at - left) / (right - left)
                if self._by_ratio and min(y, next_y) > 0:
                    return float(y * (next_y / y) ** share)
                return y + (next_y - y) * share
        return points[-1][1]
