"""Updates that are predicted instead of descended, in numbers.

    python benchmarks/predicted.py --json predicted.json      (about half a minute)

`identity_worst`: 1,000 random problems of each retrieval interface at depths 1, 2 and 5, float64; the largest
difference between a stack of constructed layers and as many gradient steps by autograd, relative to the prediction
where that is larger than 1. The theorem says 0; rounding leaves about 1e-14.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import show, write

from regrad.theory import descend, run_stack
from regrad.theory.objective import predict
from regrad.theory.random_problems import INTERFACES, random_problem

Row = dict[str, Any]
DEPTHS = (1, 2, 5)


def identity_worst(problems: int) -> tuple[float, list[Row]]:
    """The largest difference, and a row for each interface and depth."""
    rows = []
    for interface in INTERFACES:
        worst = dict.fromkeys(DEPTHS, 0.0)
        for seed in range(problems):
            problem, step = random_problem(interface, seed)
            for depth in DEPTHS:
                expected = predict(problem, *descend(problem, step, depth))
                difference = float((run_stack(problem, step, depth) - expected).abs().max())
                worst[depth] = max(worst[depth], difference / max(1.0, float(expected.abs().max())))
        rows += [
            {"figure": "identity_worst", "of": f"{interface}, depth {depth}", "problems": problems, "value": value}
            for depth, value in worst.items()
        ]
    return max(row["value"] for row in rows), rows


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="where to write the numbers")
    parser.add_argument("--problems", type=int, default=1000, help="of each interface")
    options = parser.parse_args()
    measured: dict[str, Callable[[], tuple[float, list[Row]]]] = {
        "identity_worst": lambda: identity_worst(options.problems),
    }
    figures, rows = {}, []
    for name, measure in measured.items():
        figures[name], found = measure()
        rows += found
    show(rows)
    if options.json:
        write(options.json, figures, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
