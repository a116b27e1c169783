"""Whether the nodes of a cluster have the software of the driver: a job asks before its work starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from regrad.errors import ClusterError
from regrad.rebuild.records import software

logger = logging.getLogger(__name__)

NEEDED = ("regrad", "torch", "transformers", "tokenizers", "numpy", "pyarrow")
"""What every job computes with, of the software that run records name."""

_SECONDS = 60.0  # a node that has just come starts its first worker, and may have an environment to install


def check_nodes(nodes: Mapping[str, str], needs: Sequence[str] = ()) -> None:
    """Raise `ClusterError` if one of the nodes (names by ids) lacks a package, or has another version of it.

    It would be found by its workers, after minutes, as an error of whatever they import or of a result that differs.
    """
    for error in differences(nodes, needs):
        raise error


def differences(nodes: Mapping[str, str], needs: Sequence[str] = ()) -> list[ClusterError]:
    """The first thing that is wrong with each of the nodes; a node that does not answer is left alone, and logged."""
    here = {name: found for name, found in software().items() if name in (*NEEDED, *needs)}
    ask = ray.remote(num_cpus=0, max_retries=0)(_question(tuple(here)))
    places = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes}
    tasks = {node: ask.options(scheduling_strategy=place).remote() for node, place in places.items()}
    done, _ = ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=_SECONDS) if tasks else ([], [])
    wrong = []
    for node, task in tasks.items():
        name = nodes[node]
        if task not in done:
            logger.warning("node %s has not said in %.0f s which software it has; going on without", name, _SECONDS)
            continue
        try:
            wrong += compared(name, here, ray.get(task))[:1]
        except ray.exceptions.RayError as error:  # it has gone meanwhile
            logger.warning("node %s could not be asked which software it has: %s", name, type(error).__name__)
    return wrong


def compared(node: str, here: Mapping[str, str], there: Mapping[str, str]) -> list[ClusterError]:
    """What a node lacks of the packages of this machine, and what it has in another version."""
    errors = []
    for package, expected in here.items():
        found = there.get(package)
        if found is None:
            errors.append(
                ClusterError(
                    f"node {node} has no {package}, and the job's workers there need it; install it on every node "
                    f"(pip install -c constraints.txt {package}=={_public(expected)})",
                    code="dependency_missing",
                    node=node,
                    package=package,
                )
            )
        elif _public(found) != _public(expected):
            errors.append(
                ClusterError(
                    f"node {node} has {package} {found}, and the driver {expected}; install the same version on every "
                    "node (constraints.txt)",
                    code="version_skew",
                    node=node,
                    package=package,
                    expected=expected,
                    found=found,
                )
            )
    return errors


def _public(found: str) -> str:
    """Without the build: nodes with a GPU have another build of torch than those without."""
    return found.partition("+")[0]


def _question(packages: tuple[str, ...]) -> Callable[[], dict[str, str]]:
    """The function that a node runs. It travels by value, as nothing of ours may be there to import."""

    def installed() -> dict[str, str]:
        from importlib import metadata

        found = {}
        for package in packages:
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        return found

    return installed
