"""Of Ray Data: blocks that are cut without a CPU."""

from __future__ import annotations

from ray.data import Dataset, TaskPoolStrategy
from ray.data._internal.logical.interfaces import LogicalPlan
from ray.data._internal.logical.operators import StreamingRepartition


def cut_without_processors(rows: Dataset, size: int, tasks: int) -> Dataset:
    """Blocks of exactly `size` rows (the last is shorter), cut by so many tasks at a time that take no CPU.

    `Dataset.repartition(target_num_rows_per_block=size, strict=True)` is the public way, whose tasks take a CPU each,
    and no argument changes that: where actors of several jobs hold all CPUs, none of the jobs would ever end. If it
    takes `num_cpus`, as `map_batches` does, this can go.
    """
    cut = StreamingRepartition(
        target_num_rows_per_block=size,
        strict=True,
        ray_remote_args={"num_cpus": 0},
        compute=TaskPoolStrategy(size=tasks),
        input_dependencies=[rows._logical_plan.dag],
    )
    return Dataset._from_parent(rows, LogicalPlan(cut, rows.context))
