"""A real server for plans: its configuration as a candidate and back, and what it does under load."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from regrad.errors import PlanningError
from regrad.planning.profile import EMBEDDED, ROLES, Candidate, Observed
from regrad.planning.users import RequestOutcome, Traffic, run
from regrad.planning.watching import processor_seconds, spent_by_role
from serve_app.app import anywhere, serving
from serve_app.config import ProtectionConfig, ServeConfig

_WARMING_USERS = 16


def candidate_of(config: ServeConfig) -> Candidate:
    """What the search changes, as these settings have it; of deployments that scale, their fewest replicas."""
    deployments = {
        role: config.gateway if config.embedded and role in EMBEDDED else getattr(config, role) for role in ROLES
    }
    return Candidate(
        **{role: one.min_replicas for role, one in deployments.items()},
        at_once=config.groups.at_once,
        most_grouped=config.groups.max_size,
        rows=config.batch.max_size,
        cache_bytes=config.tiers.memory_bytes,
        embedded=config.embedded,
    )


def can_change_embedded(config: ServeConfig) -> bool:
    """Whether retriever and bank loader may be embedded, or not any more, without another change of what they run on.

    A gateway has the GPUs and custom resources of its own settings, not those that retriever and bank loader name.
    """
    return not any(one.num_gpus or one.resources for one in (config.retriever, config.bank_loader))


def changed_args(args: Mapping[str, Any], candidate: Candidate) -> dict[str, Any]:
    """The application's args with a candidate's replicas, batches, cache and `embedded`, and all else as it was."""
    changed = {**deepcopy(dict(args)), "embedded": candidate.embedded}
    for role in candidate.deployments:
        replicas = candidate.replicas(role)
        changed[role] = {**(changed.get(role) or {}), "min_replicas": replicas, "max_replicas": replicas}
    for section, values in (
        ("groups", {"at_once": candidate.at_once}),
        ("batch", {"max_size": candidate.rows}),
        ("tiers", {"memory_bytes": candidate.cache_bytes}),
    ):
        changed[section] = {**(changed.get(section) or {}), **values}
    return changed


class Load:
    """Users of a running server who ask these questions."""

    def __init__(self, url: str, bodies: Sequence[dict[str, Any]]) -> None:
        self._url, self._bodies = url, bodies

    def warm(self) -> None:
        """Every question once: models have run and caches are full afterwards."""
        run(Traffic(self._url, self._bodies, 600.0, min(_WARMING_USERS, len(self._bodies)), once=True))

    def observe(self, users: int, seconds: float) -> Observed:
        """Load the server with concurrent users. Raises `PlanningError` if hardly anything was answered."""
        before, asking = processor_seconds(), _of_ended_children()
        found = run(Traffic(self._url, self._bodies, seconds, users))
        asking = _of_ended_children() - asking
        return observed(users, found, {**spent_by_role(before), "asking": asking})


def observed(users: int, found: Sequence[RequestOutcome], processor: Mapping[str, float]) -> Observed:
    """What a load came to; `processor` is in seconds, of all answers together."""
    right = [item for item in found if item.status == 200]
    if len(right) < 0.9 * len(found) or not right:
        statuses = sorted({item.status for item in found})
        raise PlanningError(
            f"with {users} users only {len(right)} of {len(found)} questions were answered (HTTP statuses "
            f"{', '.join(map(str, statuses))}); measure fewer users (measuring.users), or raise limits.max_in_flight",
            code="not_answered",
            users=users,
            answered=len(right),
            asked=len(found),
        )
    known = {role: processor.get(role, 0.0) / len(right) for role in (*ROLES, "rest", "asking")}
    return Observed(
        users=users,
        answers=len(right),
        errors=len(found) - len(right),
        rate=len(right) / max(item.due + item.seconds for item in found),
        p50=statistics.median(item.seconds for item in right),
        rows=max(1.0, statistics.mean(item.batch_size for item in right)),
        processor=known,
    )


def _of_ended_children() -> float:
    """Seconds that children of this process had computed when they ended, as the users' process has."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def loaded(config: ServeConfig, bodies: Sequence[dict[str, Any]]) -> Iterator[Load]:
    """The server on a free port of this machine, without keys and limits for callers, warm. Ray is running."""
    open_to_all = config.model_copy(update={"protection": ProtectionConfig()})
    with serving(open_to_all, anywhere()) as url:
        load = Load(url, bodies)
        load.warm()
        yield load
