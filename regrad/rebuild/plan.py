"""What a rebuild would do and take: hours, bytes and money, from what earlier runs of the steps were measured to take.

A step's time is the start of its run and, for each unit of work, the time of one worker; both are of its last run that
had the same `like` (model, codec, methods) and was not interrupted. Where there is none, a rate from the settings is
taken, and without that the answer is that it is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from regrad.errors import RebuildError
from regrad.rebuild.flow import Rebuild
from regrad.rebuild.records import CostConfig, Records, RunRecord, cost_of
from regrad.rebuild.steps import Step
from regrad.rebuild.versions import Version, Versions
from regrad.text import aligned, readable_size


@dataclass(frozen=True)
class StepEstimate:
    """What one step would take; None is unknown. A step that is `done` takes nothing."""

    step: str
    key: str
    done: bool
    unit: str
    count: int | None = None
    seconds: float | None = None
    bytes: int | None = None
    money: float | None = None
    measured: str = ""


@dataclass(frozen=True)
class RebuildPlan:
    """The estimates of all steps, in order."""

    output: str
    currency: str
    estimates: tuple[StepEstimate, ...]

    @property
    def left(self) -> list[StepEstimate]:
        """The steps that are to be done."""
        return [one for one in self.estimates if not one.done]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        totals = {name: _total(getattr(one, name) for one in self.left) for name in ("seconds", "bytes", "money")}
        return {
            "output": self.output,
            "currency": self.currency,
            "steps": [asdict(one) for one in self.estimates],
            "total": {name: {"known": known, "complete": complete} for name, (known, complete) in totals.items()},
        }

    def described(self) -> str:
        """A table for people."""
        rows = [("step", "work", "hours", "bytes", self.currency, "by"), *(self._row(one) for one in self.estimates)]
        totals = [_total(getattr(one, name) for one in self.left) for name in ("seconds", "bytes", "money")]
        (seconds, all_timed), (size, all_sized), (money, all_priced) = totals
        shown = (
            _at_least(hours_shown(seconds), seconds, all_timed),
            _at_least(readable_size(size), size, all_sized),
            _at_least(f"{money:,.2f}", money, all_priced),
        )
        rows.append(("total", f"{len(self.left)} of {len(self.estimates)} steps", *shown, ""))
        return "\n".join(aligned(rows))

    def _row(self, one: StepEstimate) -> tuple[str, ...]:
        if one.done:
            return one.step, "done before", "", "", "", ""
        work = f"{one.count:,} {one.unit}" if one.count is not None else f"{one.unit or 'work'}: unknown"
        return (
            one.step,
            work,
            "unknown" if one.seconds is None else hours_shown(one.seconds),
            "unknown" if one.bytes is None else readable_size(one.bytes),
            "unknown" if one.money is None else f"{one.money:,.2f}",
            one.measured or "nothing was measured",
        )


def make_plan(job: Rebuild, rates: Mapping[str, float]) -> RebuildPlan:
    """The plan of a rebuild, of its version's evaluation, and of that of the current version if it has none yet.

    `rates` are units a second and worker, by step. Raises `RebuildError` for a rate of no step.
    """
    records, versions = Records(job.output), Versions(job.output)
    steps = [*job.steps, *_evaluations(job, versions)]
    names = {step.name for step in steps}
    if unknown := sorted(set(rates) - names):
        text = f"rates.{unknown[0]} is of no step; the steps are {', '.join(sorted(names))}"
        raise RebuildError(text, code="unknown_rate", step=unknown[0], known=sorted(names))
    history = list(records.all())
    estimates = tuple(_estimate(step, records, history, rates.get(step.name), job.cost) for step in steps)
    return RebuildPlan(job.output.uri, job.cost.currency, estimates)


def _evaluations(job: Rebuild, versions: Versions) -> Iterator[Step]:
    # The key of an evaluation depends on the keys of the version's parts, and not on what is not known yet.
    parts = {"places": dict(job.places), "keys": dict(job.keys)}
    new = job.evaluation(Version(id=f"0000-{job.digest}", bank_version=1, passages=0, **parts))
    yield new
    if current := versions.current():
        other = job.evaluation(versions.read(current.version))
        if other.key != new.key:
            yield other


def _estimate(
    step: Step, records: Records, history: Iterable[RunRecord], rate: float | None, cost: CostConfig
) -> StepEstimate:
    record = records.read(step.name, step.key)
    if record is not None and record.ended is not None:
        return StepEstimate(step.name, step.key, True, step.unit)
    count = step.count()
    like = next((one for one in history if one.step == step.name and one.whole and one.like == step.like), None)
    seconds, measured = None, ""
    if count is not None and like is not None and like.count:
        seconds = _seconds(like, count, step.workers)
        measured = f"the run of {like.began:%Y-%m-%d %H:%M}: {like.count:,} {like.unit} in {like.seconds:,.0f} s"
        measured += f" with {like.workers} workers, {step.workers} now" if like.workers != step.workers else ""
    elif count is not None and rate:
        seconds, measured = count / (rate * step.workers), f"rates.{step.name}: {rate:g} a second and worker"
    size = None if count is None else step.size(count)
    if size is None and like is not None:
        size = like.bytes if not step.grows else _scaled(like, count)
    money = cost_of(seconds, cost) if seconds is not None else None
    return StepEstimate(
        *(step.name, step.key, False, step.unit, count, seconds, size), money.amount if money else None, measured
    )


def _seconds(like: RunRecord, count: int, workers: int) -> float:
    """Start of the run and its work, the second by number and shared by the workers."""
    assert like.seconds is not None
    assert like.count
    in_all = like.seconds * like.workers
    # Without a measure of the work alone the start is taken for work: too much for a larger rebuild, never too little.
    busy = min(in_all, like.busy_seconds) if like.busy_seconds is not None else in_all
    start = like.seconds - busy / like.workers
    return start + busy / like.count * count / workers


def _scaled(like: RunRecord, count: int | None) -> int | None:
    return None if count is None or not like.count else round(like.bytes * count / like.count)


def _total(values: Iterable[float | None]) -> tuple[float, bool]:
    """The sum of what is known, and whether all is."""
    found = list(values)
    return sum(value for value in found if value is not None), None not in found


def _at_least(text: str, known: float, complete: bool) -> str:
    return text if complete else f"at least {text}" if known else "unknown"


def hours_shown(seconds: float) -> str:
    """Hours, with two decimals, or four where that is too few."""
    return f"{seconds / 3600:,.2f}" if seconds >= 3600 else f"{seconds / 3600:.4f}"
