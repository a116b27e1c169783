"""A server whose generator has one replica a node, as many as its load needs: a step of load up, and down again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.serve.schema import ReplicaState
from serving.lab import Lab, lab

from nodes.simulated import simulated
from regrad.planning.users import RequestOutcome, Traffic, run
from regrad.settings import builtin_config
from serve_app.app import APPLICATION, anywhere, load_serve_file, serving
from serve_app.config import ServeConfig

DEPLOYMENT = "generator"


@dataclass
class Phase:
    """So many users for so many seconds, and what became of their requests."""

    name: str
    users: int
    seconds: float
    began: float = 0.0
    outcomes: list[RequestOutcome] = field(default_factory=list)


@dataclass
class Replicas:
    """How many replicas of the generator ran, by the time of the clock, whenever it changed."""

    changes: list[tuple[float, int]] = field(default_factory=list)

    def look(self) -> int:
        """How many there are now."""
        states = serve.status().applications[APPLICATION].deployments[DEPLOYMENT].replica_states
        running = int(states.get(ReplicaState.RUNNING, 0))
        if not self.changes or self.changes[-1][1] != running:
            self.changes.append((time.time(), running))
        return running

    def reached(self, count: int, after: float, at_most: bool = False) -> float | None:
        """Seconds from a time until there were that many; None: never."""
        for when, running in self.changes:
            if when >= after and (running <= count if at_most else running >= count):
                return when - after
        return None


@contextmanager
def watched() -> Iterator[Replicas]:
    """The replicas, looked at four times a second."""
    replicas, stop = Replicas(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.25):
            replicas.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield replicas
    finally:
        stop.set()
        thread.join()


def production(world: Lab, replicas: int, target: float, calm_seconds: float) -> ServeConfig:
    """`configs/serve/production.yaml` on this lab: its generator without a GPU, and calm again after a shorter time."""
    config, _ = load_serve_file(builtin_config("serve/production.yaml"))
    generator = {
        **config.generator.model_dump(),
        **{"num_gpus": 0, "num_cpus": 1, "max_replicas": replicas},
        **{"target_ongoing_requests": target, "downscale_delay_seconds": calm_seconds},
    }
    return world.config(generator=generator, limits=config.limits.model_dump(), batch=config.batch.model_dump())


def elastic(phases: Sequence[Phase], replicas: int, target: float, calm_seconds: float) -> Replicas:
    """Carry out the phases, one after the other, and fill in their outcomes."""
    with (
        lab("") as world,
        simulated(replicas, cpus=2, resources={"generate": 1}, head_cpus=2),
        serving(production(world, replicas, target, calm_seconds), anywhere(), shared=True) as url,
        watched() as found,
    ):
        run(Traffic(url, world.bodies(), 3.0, users=1))
        for phase in phases:
            phase.began = time.time()
            phase.outcomes = run(Traffic(url, world.bodies(), phase.seconds, users=phase.users))
    return found


def serving_rows(phases: Sequence[Phase], found: Replicas) -> list[dict[str, Any]]:
    """A row for each phase."""
    rows = []
    for phase in phases:
        ended = phase.began + phase.seconds
        seen = [count for when, count in found.changes if phase.began <= when <= ended]
        before = [count for when, count in found.changes if when < phase.began]
        answered = [item for item in phase.outcomes if item.status == 200]
        rows.append(
            {
                "phase": phase.name,
                "users": phase.users,
                "seconds": phase.seconds,
                "replicas at first": before[-1] if before else 0,
                "replicas at last": [*before, *seen][-1],
                "requests": len(phase.outcomes),
                "answers/s": len(answered) / phase.seconds,
                "errors": len(phase.outcomes) - len(answered),
            }
        )
    return rows
