"""Job: every method on every question set, the cells over a pool of actors, then the report.

ray job submit -- python -m ray_jobs.evaluate --config configs/jobs/eval-lab.yaml

Interrupted at any point, the same command continues with the cells that are not done; a cell whose settings or data
have changed is run again.
"""

from __future__ import annotations

import logging
from typing import Any

import ray

from ray_jobs.cell_actors import CellActor
from ray_jobs.cluster import cause_of, cluster, gpus_of, job_main, require_workers
from ray_jobs.progress import progress_bar, progress_channel
from ray_jobs.waiting import wait_for_room
from regrad.errors import ClusterError, RegradError
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.output import Output, Planned, TimeLeft, plan_of
from regrad.evaluation.plan import PlannedCell, make_plan
from regrad.evaluation.report.writing import write_report

logger = logging.getLogger(__name__)

_LOST_WORKERS = 3  # how often a cell is run again because its worker was lost
_QUICKLY_REPORTED = 30_000  # answers: about two seconds


def run(config: EvalConfig) -> str:
    """Run the cells that are not done and write the report; returns one line saying where.

    Everything that can be checked without a model is checked first. Raises `EvaluationError` while another run writes
    to the same output.
    """
    cells, output = make_plan(config), Output(config.output)
    planned = plan_of(config, cells)
    with output.alone():
        left = output.start(planned, cells)
        try:
            if left:
                run_cells(config, left)
        except KeyboardInterrupt:
            _say_what_is_kept(output, planned)
            raise
        report = write_report(output, planned)
    return f"{len(left)} cells run, {len(cells) - len(left)} were done before; {report}"


def _say_what_is_kept(output: Output, planned: Planned) -> None:
    """Tell the person who interrupts a run what is kept, with a report of it if that takes only seconds."""
    done = output.done(planned)
    kept = f"{len(done)} of {len(planned.cells)} cells are done and kept; the same command continues with the rest"
    report = "; --report-only makes a report of what there is" if done else ""
    if done and sum(card.questions for card in done) <= _QUICKLY_REPORTED:
        try:
            report = f"; {write_report(output, planned)}"
        except RegradError as error:
            report = f"; no report could be written: {error}"
    logger.warning("%s%s", kept, report)


def run_cells(config: EvalConfig, cells: list[PlannedCell]) -> None:
    """Run cells on `cluster.workers` actors. Raises the first error of a cell; finished cells are kept."""
    total = sum(cell.questions for cell in cells)
    workers = min(config.cluster.workers, len(cells))
    time_left = TimeLeft(cells, workers)

    def count(batch: tuple[str, int, float]) -> None:
        time_left.count(*batch)
        show((total - time_left.questions_left,) * 2)

    with cluster(), progress_bar(total, "questions", time_left.left) as show, progress_channel(count) as progress:
        require_workers(config.cluster)
        wait_for_room(config.cluster)
        _run(config, _shares(cells, workers), progress)


def _shares(cells: list[PlannedCell], workers: int) -> list[list[PlannedCell]]:
    """Consecutive cells for each worker, so that it opens few models and banks, with about equally many questions."""
    total, before = sum(cell.questions for cell in cells), 0
    shares: list[list[PlannedCell]] = [[] for _ in range(workers)]
    for cell in cells:
        shares[min(workers - 1, before * workers // max(1, total))].append(cell)
        before += cell.questions
    return shares


def _run(config: EvalConfig, shares: list[list[PlannedCell]], progress: Any) -> None:
    """Each actor runs the cells of its share; when none is left it takes the last one of the longest share."""
    workers = config.cluster
    options: dict[str, Any] = {
        "num_cpus": workers.cpus_per_worker,
        "num_gpus": gpus_of(workers),
        "resources": workers.resources,
    }
    actor = ray.remote(max_restarts=_LOST_WORKERS, max_task_retries=_LOST_WORKERS, **options)(CellActor)
    actors = [actor.remote(config.model_dump(mode="json")) for _ in shares]
    idle = list(zip(actors, shares, strict=True))
    running: dict[Any, tuple[Any, list[PlannedCell]]] = {}
    while idle or running:
        for one, share in idle:
            longest = max(shares, key=len)
            if share or longest:
                cell = share.pop(0) if share else longest.pop()
                running[one.run.remote(cell, progress)] = (one, share)
        idle = []
        if running:
            (ready, *_), _ = ray.wait(list(running))
            idle = [running.pop(ready)]
            _finish(ready)


def _finish(reference: Any) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from None
    except ray.exceptions.RayActorError as error:
        raise ClusterError(
            f"a worker was lost {1 + _LOST_WORKERS} times, perhaps because memory ran out: lower batch.rows, "
            "batch.questions or cluster.workers; the same command continues with what is not done",
            code="worker_lost",
            times=1 + _LOST_WORKERS,
        ) from error


if __name__ == "__main__":
    job_main(EvalConfig, run, __doc__ or "")
