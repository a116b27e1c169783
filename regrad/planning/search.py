"""Which configuration to serve with: all that fit are predicted, and the best is chosen (after RAGO, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product

from regrad.errors import PlanningError
from regrad.planning.prediction import Prediction, Predictor
from regrad.planning.profile import ROLES, Bank, Candidate, Machine
from regrad.text import milliseconds, readable_size

_AT_ONCE = (1, 2, 4, 8)
_CACHED = (0.0, 0.25, 0.5, 1.0)
# Predictions that differ by less than a hundredth are the same: then what takes less of the machine is better.
_SAME = 0.01


@dataclass(frozen=True)
class Limits:
    """What a configuration may use, and the processors and GPUs that a replica of each deployment reserves.

    `embedded` has the values of `Candidate.embedded` that may be tried.
    """

    machine: Machine
    cpus: Mapping[str, float]
    gpus: Mapping[str, float]
    most_replicas: int = 4
    most_rows: int = 64
    embedded: tuple[bool, ...] = (False, True)

    def reserves(self, candidate: Candidate) -> tuple[float, float]:
        """Processors and GPUs of all replicas."""
        replicas = {role: candidate.replicas(role) for role in candidate.deployments}
        cpus = sum(count * self.cpus.get(role, 0.0) for role, count in replicas.items())
        return cpus, sum(count * self.gpus.get(role, 0.0) for role, count in replicas.items())


@dataclass(frozen=True)
class Choice:
    """A configuration with what is predicted of it."""

    candidate: Candidate
    predicted: Prediction
    memory_bytes: int


def fitting(predictor: Predictor, default: Candidate, limits: Limits, bank: Bank) -> list[Candidate]:
    """The configurations that fit: replicas, batches and caches in powers of two, and the default's own.

    Embedded or not as the limits allow, but only what the predictor knows. Raises `PlanningError` if there is no room
    for one: in memory, processors or GPUs.
    """
    check_processors(default, limits)
    machine = limits.machine
    known = [embedded for embedded in limits.embedded if predictor.knows(embedded)]
    everything = chain.from_iterable(_all(default, limits, bank, embedded) for embedded in known)
    found = [one for one in everything if _has_processors(limits, one)]
    roomy = [one for one in found if _has_room(predictor, one, machine, limits)]
    if not roomy:
        least = min(predictor.memory_bytes(one) for one in found)
        on_gpu = any(limits.gpus.values())
        model = min(predictor.gpu_bytes(one) if on_gpu else predictor.model_bytes(one) for one in found)
        raise no_room(least, model, machine, on_gpu)
    return roomy


def fits(predictor: Predictor, candidate: Candidate, limits: Limits) -> bool:
    """Whether this configuration has room, in memory, processors and GPUs."""
    return _has_processors(limits, candidate) and _has_room(predictor, candidate, limits.machine, limits)


def check_processors(default: Candidate, limits: Limits) -> None:
    """Raise `PlanningError` if not even one replica of each deployment has the processors and GPUs that it reserves."""
    smallest = default.model_copy(update=dict.fromkeys(ROLES, 1))
    if _has_processors(limits, smallest):
        return
    cpus, gpus = limits.reserves(smallest)
    machine = limits.machine
    raise PlanningError(
        f"one replica of each deployment reserves {cpus:g} cores and {gpus:g} GPUs, and {machine.cores} cores and "
        f"{machine.gpus} GPUs are given (machine.cores, machine.gpus); give more, or lower num_cpus or num_gpus in the "
        "serve configuration",
        code="no_cores",
        cores=machine.cores,
        gpus=machine.gpus,
    )


def no_room(least: int, model: int, machine: Machine, on_gpu: bool) -> PlanningError:
    """The error of a model that does not fit: bytes that the smallest configuration needs, and those of the model.

    On GPUs those of the model are what the fullest of its GPUs would have of it.
    """
    on_card = f", of each GPU {readable_size(machine.gpu_bytes)} (machine.gpu_bytes)" if on_gpu else ""
    where = " on a GPU" if on_gpu else ""
    return PlanningError(
        f"there is no room: the smallest configuration needs {readable_size(least)}, with {readable_size(model)} for "
        f"the model{where}; the memory given is {readable_size(machine.memory_bytes)} (machine.memory_bytes){on_card}; "
        "give more, or serve a smaller model",
        code="no_room",
        needed=least,
        model=model,
        found=machine.memory_bytes,
    )


def _all(default: Candidate, limits: Limits, bank: Bank, embedded: bool) -> Iterator[Candidate]:
    rows = sorted({default.rows, *_doubled(limits.most_rows)})
    caches = sorted({default.cache_bytes, *(math.ceil(share * bank.bytes) for share in _CACHED)})
    at_once = sorted({default.at_once, *_AT_ONCE})
    for replicas in _replicas(limits.most_replicas, embedded):
        for places, most, cache in product(at_once, rows, caches):
            batches = {"at_once": places, "rows": most, "cache_bytes": cache}
            yield default.model_copy(update={**replicas, **batches, "embedded": embedded})


def _replicas(most: int, embedded: bool) -> Iterator[dict[str, int]]:
    """By role, up to so many; an embedded server's retrievers and bank loaders are as many as its gateways."""
    counts = tuple(_doubled(most))
    for gateway in counts:
        beside = [(gateway, gateway)] if embedded else product(counts, repeat=2)
        for (retriever, loader), generator in product(beside, counts):
            yield {"gateway": gateway, "retriever": retriever, "bank_loader": loader, "generator": generator}


def _doubled(most: int) -> Iterator[int]:
    number = 1
    while number <= most:
        yield number
        number *= 2


def _has_processors(limits: Limits, candidate: Candidate) -> bool:
    cpus, gpus = limits.reserves(candidate)
    return cpus <= limits.machine.cores and gpus <= limits.machine.gpus


def _has_room(predictor: Predictor, candidate: Candidate, machine: Machine, limits: Limits) -> bool:
    on_gpu = any(limits.gpus.values())
    fits = predictor.memory_bytes(candidate) <= machine.memory_bytes
    return fits and not (on_gpu and predictor.gpu_bytes(candidate) > machine.gpu_bytes)


def predicted(predictor: Predictor, candidates: Sequence[Candidate], machine: Machine, users: int) -> list[Choice]:
    """All of them with so many users."""
    return [Choice(one, predictor.predict(one, machine, users), predictor.memory_bytes(one)) for one in candidates]


def best(choices: Sequence[Choice], bound: float | None) -> Choice:
    """The highest rate whose p50 (seconds) is within the bound; of equal ones the one that takes least.

    Raises `PlanningError` if none is, with the best that can be reached.
    """
    allowed = [one for one in choices if bound is None or one.predicted.p50 <= bound]
    if not allowed:
        fastest = min(choices, key=lambda one: one.predicted.p50)
        assert bound is not None
        raise PlanningError(
            f"no configuration is predicted to answer {fastest.predicted.users} users in {milliseconds(bound)} (p50); "
            f"the best that can be reached is {milliseconds(fastest.predicted.p50)}: raise bound_ms, lower users, or "
            "give more of the machine",
            code="bound_out_of_reach",
            bound_ms=1e3 * bound,
            best_ms=1e3 * fastest.predicted.p50,
        )
    return min(allowed, key=_order)


def _order(choice: Choice) -> tuple[float, ...]:
    steps = round(math.log(choice.predicted.rate) / math.log1p(_SAME))
    return -steps, choice.candidate.processes, choice.memory_bytes, choice.candidate.at_once


def front(choices: Sequence[Choice]) -> list[Choice]:
    """Those that no other one beats in both time to first token and rate, the quickest first."""
    found: list[Choice] = []
    for one in sorted(choices, key=lambda one: (one.predicted.first_token, *_order(one))):
        if not found or one.predicted.rate > found[-1].predicted.rate * (1 + _SAME):
            found.append(one)
    return found
