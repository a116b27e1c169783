"""What a job says while a cluster has no room for it."""

from __future__ import annotations

import pytest

from ray_jobs.waiting import waiting_line


@pytest.mark.parametrize(
    ("needs", "free", "there", "line"),
    [
        ({"CPU": 1.0}, {}, {"CPU": 2.0}, "waiting for 1 CPU: of the cluster's 2, 2 are held by others"),
        ({"CPU": 2.0}, {"CPU": 1.0}, {"CPU": 4.0}, "waiting for 2 CPU: of the cluster's 4, 3 are held by others"),
        (
            {"CPU": 1.0, "GPU": 1.0},
            {"CPU": 8.0},
            {"CPU": 8.0},
            "waiting for 1 GPU, of which the cluster has 0, until a node with it comes",
        ),
        (
            {"CPU": 1.0, "train": 1},
            {"CPU": 2.0},
            {"CPU": 2.0, "train": 8},
            "waiting for 1 train: of the cluster's 8, 8 are held by others",
        ),
        (
            {"CPU": 2.0},
            {"CPU": 2.0},
            {"CPU": 4.0},
            "waiting for a worker with 2 CPU to start",
        ),
    ],
    ids=["all held", "some held", "not there", "of our own", "in pieces, or slow"],
)
def test_the_line_names_what_is_missing_and_who_has_it(
    needs: dict[str, float], free: dict[str, float], there: dict[str, float], line: str
) -> None:
    assert waiting_line(needs, free, there) == line
