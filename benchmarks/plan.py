"""How well a planned configuration of the lab's server is predicted, and what it gains over the default one.

    python benchmarks/plan.py --json plan.json      (--quick: short loads, one turn)

`regrad plan` with `check`, on the lab: a profile of the stages, of the default server and of the same embedded under 1,
4, 8, 32 and 64 users, the search, then the default and the chosen configuration under 16 users in turn, each started
anew. 16 users are not among the loads that the profile has. With a `--profile` from before embedded servers were
measured none of them is planned.

`worst_prediction_error` is the largest of the four relative errors (rate and p50 of both, medians over the turns);
`gain_over_default` the ratio of the rates that were measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from common import show, write
from serving.lab import Lab, lab

from regrad.cli.plan import job
from regrad.planning.config import PlanConfig

TARGETS = {"worst_prediction_error": "at most 0.10", "gain_over_default": "at least 1.5"}


def settings_of(world: Lab, arguments: argparse.Namespace) -> PlanConfig:
    """A plan for the server of the lab in its folder."""
    places = {name: f"{world.folder}/{part}" for name, part in _PARTS.items()}
    questions = Path(world.folder) / "questions.jsonl"
    rows = [{"question": item.question, "answers": list(item.answers)} for item in world.questions]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PlanConfig.model_validate(
        {
            "serve": {"applications": [{"name": "regrad", "import_path": "serve_app.app:build", "args": places}]},
            "output": arguments.output or f"{world.folder}/plan",
            "profile": arguments.profile or None,
            "questions": {"name": "people", "path": str(questions)},
            "users": arguments.users,
            "measuring": {"seconds": arguments.seconds},
            "check": True,
            "check_seconds": arguments.check_seconds,
            "check_turns": arguments.turns,
        }
    )


_PARTS = {"meta_init": "meta-init", "bank": "bank", "index": "index"}


def rows_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each load of the check."""
    return [
        {
            "configuration": row["name"],
            "embedded": report[row["name"]]["configuration"]["embedded"],
            "turn": row["turn"],
            "predicted answers/s": row["predicted"]["rate"],
            "answers/s": row["measured"]["rate"],
            "predicted p50 ms": 1e3 * row["predicted"]["p50"],
            "p50 ms": 1e3 * row["measured"]["p50"],
            "predicted CPU ms": 1e3 * row["predicted"]["demand"],
            "CPU ms": 1e3 * sum(row["measured"]["processor"].values()),
        }
        for row in report["check"]
    ]


def main() -> None:
    """Plan, check, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta-init", default="", metavar="PATH", help="a lab MetaInit, instead of an untrained one")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load of the profile")
    parser.add_argument("--check-seconds", type=float, default=15.0)
    parser.add_argument("--turns", type=int, default=3, help="of the default and the chosen configuration")
    parser.add_argument("--profile", default="", metavar="FILE", help="one of before; its lab must be the same")
    parser.add_argument("--output", default="", metavar="FOLDER", help="keeps profile, plan and serve configuration")
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="short loads, one turn")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.check_seconds, arguments.turns = 3.0, 4.0, 1
    torch.set_num_threads(1)
    with lab(arguments.meta_init) as world:
        report = job.plan(settings_of(world, arguments), lambda text: print(text, file=sys.stderr, flush=True))
    print(report.described())
    rows = rows_of(json.loads(report.as_json()))
    show(rows)
    show([{"figure": name, "value": value, "target": TARGETS[name]} for name, value in report.figures.items()])
    if arguments.json:
        write(arguments.json, report.figures, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
