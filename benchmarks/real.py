"""The figures of the real study, from what `python -m studies.real` has left in its output.

python benchmarks/real.py runs/real --json real.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common import show, write

LEAST_GAP = 1.0


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a figure: value, target, and whether it is reached."""
    gap = report["loss_gap_right_vs_other"]
    reading = {"figure": "loss_gap_right_vs_other", "value": gap, "low": None, "high": None, "p": None}
    found = [reading | {"at least": LEAST_GAP, "met": gap >= LEAST_GAP}]
    for one in report["figures"]:
        found.append(
            {
                "figure": one["name"],
                "value": one["points"],
                "low": one["interval"][0],
                "high": one["interval"][1],
                "p": one["p"],
                "at least": one["target"],
                "met": one["met"],
            }
        )
    return found


def main() -> None:
    """Print the table; write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="of the study")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    path = options.output / "report.json"
    if not path.is_file():
        parser.exit(2, f"error: there is no {path}; run `python -m studies.real` first (docs/real.md)\n")
    report = json.loads(path.read_text())
    found = rows(report)
    show(found)
    if options.json:
        figures = {row["figure"]: row["value"] for row in found}
        write(options.json, figures, found, torch.device("cpu"))


if __name__ == "__main__":
    main()
