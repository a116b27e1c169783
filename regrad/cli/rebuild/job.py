"""The rebuild as a job: what is wrong is found before anything begins, then everything is done.

ray job submit -- python -m regrad.cli.rebuild.job --config configs/jobs/rebuild-lab.yaml
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ray_jobs.cluster import job_main
from regrad.cli.rebuild.checks import check_before
from regrad.cli.rebuild.steps import make_rebuild
from regrad.rebuild.config import RebuildConfig
from regrad.rebuild.flow import rebuild
from regrad.rebuild.plan import RebuildPlan, make_plan
from regrad.rebuild.records import Records

logger = logging.getLogger(__name__)


def run(config: RebuildConfig) -> str:
    """Rebuild; returns one line about the version that is current."""
    return rebuild_of(config, logger.info)[0]


def rebuild_of(config: RebuildConfig, say: Callable[[str], None]) -> tuple[str, int]:
    """Rebuild; returns the closing line, and how many passages the version's bank has refused."""
    check_before(config)
    job = make_rebuild(config)
    line = rebuild(job, say)
    build = next(step for step in job.steps if step.name == "build")
    record = Records(job.output).read(build.name, build.key)
    return line, int(record.facts["refused"]) if record else 0


def plan(config: RebuildConfig) -> RebuildPlan:
    """What a rebuild would do now, and what it would take; nothing is written."""
    return make_plan(make_rebuild(config), config.rates)


if __name__ == "__main__":
    job_main(RebuildConfig, run, __doc__ or "", record=False)
