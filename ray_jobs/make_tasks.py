"""Job: make the tasks of `regrad train` of a question set, on some node of the cluster if anything is to be retrieved.

ray job submit -- python -m ray_jobs.make_tasks --config configs/jobs/tasks-lab.yaml
"""

from __future__ import annotations

import logging
from typing import Any

from ray_jobs.cluster import cluster, job_main, run_task
from ray_jobs.progress import progress_channel
from ray_jobs.waiting import ONE_CPU, wait_for_room
from regrad.data.question_sets import READERS
from regrad.retrieval.base import check_index
from regrad.storage import Storage, check_replaceable, parts_uri
from regrad.training.task_files.config import TasksConfig
from regrad.training.task_files.maker import REPORT, TaskMaker, describe_report

logger = logging.getLogger(__name__)


def run(config: TasksConfig) -> str:
    """Write `config.output`; returns one line saying what was made, what was left out, and why.

    Raises `TrainingError` if no task could be made; what was left out, and why, is written all the same.
    """
    check_replaceable(config.output, REPORT)
    READERS.check(config.questions.format)
    parts = Storage(parts_uri(config.output))
    if config.passages.index is not None:
        check_index(config.passages.index, config.passages.retrieval)
        with cluster(), progress_channel() as progress:
            wait_for_room(ONE_CPU)
            report = run_task(_make, config, progress, num_cpus=1)
    else:
        report = TaskMaker(config, parts, logger.info).make()
    parts.remove()
    return describe_report(report, config.output)


def _make(config: TasksConfig, progress: Any) -> dict[str, Any]:
    return TaskMaker(config, Storage(parts_uri(config.output)), progress.push.remote).make()


if __name__ == "__main__":
    job_main(TasksConfig, run, __doc__ or "")
