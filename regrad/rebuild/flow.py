"""A rebuild from end to end: its parts, the version that they make, its score, and whether it becomes current.

The order is what makes it safe to kill: a version is written when its parts are verified, servers take it up when its
score holds, and only then the one file that says what is current is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

from regrad.digests import json_digest
from regrad.rebuild.records import CostConfig, RunRecord
from regrad.rebuild.steps import Done, Step, alone, check_writable, run_steps
from regrad.rebuild.versions import PRUNING, PromotionConfig, Version, Versions, check_score
from regrad.storage import Storage

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rebuild:
    """What is to be done.

    `places` and `keys` are those of the version's parts, by name. `pinned` says, when the steps are done, which version
    of the bank it has and how many passages. `evaluation` is the step that scores a version, `score` reads the figure
    of its record, and `serve` has servers answer from a version. `around` is entered before the first step that has
    something to do.
    """

    output: Storage
    steps: Sequence[Step]
    places: Mapping[str, str]
    keys: Mapping[str, str]
    pinned: Callable[[Done], dict[str, Any]]
    evaluation: Callable[[Version], Step]
    score: Callable[[RunRecord], float]
    serve: Callable[[Version], str | None] = lambda _: None
    promotion: PromotionConfig = field(default_factory=PromotionConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    around: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def digest(self) -> str:
        """12 hex digits of what the version is made of."""
        return json_digest(dict(self.keys), 12)

    def version(self, done: Done) -> Version:
        """The version of these finished steps, written if it is new."""
        content = {"places": dict(self.places), "keys": dict(self.keys), **self.pinned(done)}
        return Versions(self.output).take(self.digest, content)


def rebuild(job: Rebuild, say: Say) -> str:
    """Do what is not done, and make the version current if its score holds; returns one line about it.

    Killed anywhere, the next call goes on, and ends with the same bytes. Raises `RebuildError` while another one is at
    work in the same place, `NotPromoted` if the score does not hold, and what the steps raise.
    """
    check_writable(job.output)
    with alone(job.output), ExitStack() as stack:
        _finish_pruning(job.output)
        begun: list[bool] = []

        def begin() -> None:
            if not begun:
                stack.enter_context(job.around())
                begun.append(True)

        version = job.version(run_steps(job.steps, job.output, job.cost, say, begin))
        versions = Versions(job.output)
        current = versions.current()

        def scored(one: Version) -> float:
            step = job.evaluation(one)
            return job.score(run_steps([step], job.output, job.cost, say, begin)[step.name])

        score = scored(version)
        if current is not None and current.left == version.id:
            return (
                f"version {version.id} is complete, but was rolled back, and {current.version} stays current; "
                "`regrad rebuild rollback` takes it again"
            )
        if current is not None and current.version == version.id:
            return f"version {version.id} is current already: nothing has changed"
        before = scored(versions.read(current.version)) if current else None
        held = check_score(job.promotion, version.id, score, current.version if current else None, before)
        serving = job.serve(version)
        versions.promote(version)
    return f"version {version.id} is current: {held}{f'; {serving}' if serving else ''}"


def roll_back(output: Storage, serve: Callable[[Version], str | None]) -> str:
    """Restore the previous version, in the servers first; called twice, it is undone. Returns one line.

    Raises `RebuildError` if there is none, or while a rebuild is at work.
    """
    with alone(output):
        _finish_pruning(output)
        versions = Versions(output)
        back = versions.rolled_back()
        serving = serve(versions.read(back.version))
        versions.put(back)
    return f"version {back.version} is current again, instead of {back.left}{f'; {serving}' if serving else ''}"


def _finish_pruning(output: Storage) -> None:
    """What a prune that was killed has left: a step that was done must not be found whose result is half removed."""
    if output.exists(PRUNING):
        from regrad.rebuild.prune import finish  # which reads banks, and so takes seconds to import

        finish(output)
