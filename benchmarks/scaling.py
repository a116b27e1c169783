"""What several nodes add to a bank's build and to serving: nodes of this machine, each a raylet of its own.

    python benchmarks/scaling.py --json scaling.json      (--quick: shorter loads, no number of use)

Builds are those of the real job, whose workers wait for each passage instead of computing a gradient: the cores of one
machine are not what is measured. Every node has as much to do, however many there are. `efficiency_n_nodes` is passages
a second on n nodes over n times those on one, while all workers are at work; `..._whole_job` also counts their start
and the commit. `coordinator_cpu_s_per_million_passages` is what the driver and the process of its pipeline compute;
`commit_seconds_10m_rows` is the commit of ten million passages.

Serving is the lab's, with the scaling of configs/serve/production.yaml: one user, then many, then one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import show, write
from nodes.building import coordinator_rows, per_million, scaling_rows
from nodes.elastic import Phase, elastic, serving_rows

Rows = list[dict[str, Any]]
PARTS = ("build", "coordinator", "commit", "serve")
COUNTS = (1, 2, 4)


def build(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], Rows]:
    """Builds on more and more nodes."""
    rows = scaling_rows(folder, COUNTS, 10.0 if arguments.quick else arguments.seconds, arguments.milliseconds)
    found = {f"efficiency_{row['nodes']}_nodes": row["efficiency"] for row in rows[1:]}
    whole = {f"efficiency_{row['nodes']}_nodes_whole_job": row["whole job, efficiency"] for row in rows[1:]}
    return found | whole, rows


def coordinator(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], Rows]:
    """Builds of blocks of the default size that wait for nothing."""
    sizes = (5_000, 20_000) if arguments.quick else (20_000, 120_000)
    rows = coordinator_rows(folder, sizes, 1024)
    return {"coordinator_cpu_s_per_million_passages": per_million(rows)}, rows


def commit(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], Rows]:
    """Commits in processes of their own."""
    counts = (100_000, 200_000) if arguments.quick else (100_000, 1_000_000, 10_000_000)
    rows = [_committed(folder, count) for count in counts]
    return {} if arguments.quick else {"commit_seconds_10m_rows": rows[-1]["seconds"]}, rows


def _committed(folder: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "nodes.committing", str(folder / f"commit-{count}"), str(count)]
    result = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(result.stdout)
    times = {"seconds": found["seconds"], "CPU s": found["cpu"]}
    return {"passages": count, "shards": found["shards"], **times, "peak MB": found["peak"] / 1e6}


def serve(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], Rows]:
    """A step of load up, and down again."""
    most, calm = arguments.replicas, 10.0
    phases = [
        Phase("calm", 1, 5.0),
        Phase("load", arguments.users, 30.0 if arguments.quick else 90.0),
        Phase("calm again", 1, 20.0 if arguments.quick else 45.0),
    ]
    found = elastic(phases, most, arguments.target, calm)
    figures = {
        "scale_out_seconds": found.reached(most, phases[1].began),
        "scale_in_seconds": found.reached(1, phases[2].began, at_most=True),
        "errors_while_scaling": sum(item.status != 200 for phase in phases for item in phase.outcomes),
        "requests_while_scaling": sum(len(phase.outcomes) for phase in phases),
    }
    return figures, serving_rows(phases, found)


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of every worker's time in a build")
    parser.add_argument("--milliseconds", type=float, default=10.0, help="that a worker waits for a passage")
    parser.add_argument("--users", type=int, default=32, help="of the server under load")
    parser.add_argument("--replicas", type=int, default=3, help="of the generator at most, one a node")
    parser.add_argument("--target", type=float, default=4.0, help="requests that a generator is to have at a time")
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    rows: Rows = []
    with tempfile.TemporaryDirectory() as name:
        for part in arguments.parts:
            found, table = {"build": build, "coordinator": coordinator, "commit": commit, "serve": serve}[part](
                Path(name), arguments
            )
            figures |= found
            rows += [{"table": part, **row} for row in table]
            show(table)
            print()
    show([{"figure": key, "value": "never" if value is None else value} for key, value in figures.items()])
    if arguments.json:
        write(arguments.json, figures, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
