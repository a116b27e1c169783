"""ReGrad's exact match on the lab's held-out people, for several seeds of meta-training.

    python benchmarks/lab_quality.py --json lab_quality.json       (--quick: under a minute, no number of use)

Each seed is one `regrad train` with the lab's settings and two workers; then 400 questions about people whom no stage
has seen, passages found by BM25 over their 400 documents, nothing in the prompt. The settings were chosen on other
people (the dev split).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import show, write
from synthesis import HeldOut

from regrad.lab.config import LabConfig
from regrad.lab.files import write_lab
from regrad.lab.world import World
from regrad.meta_init import MetaInit


def train(folder: Path, seed: int, settings: list[str]) -> tuple[MetaInit, float]:
    """One run of the command, and its seconds from start to end."""
    output = f"{folder}/meta-init-{seed}"
    values = [f"tasks={folder}/lab/tasks.jsonl", f"dev={folder}/lab/dev.jsonl", f"output={output}", f"seed={seed}"]
    options = [part for value in [*values, *settings] for part in ("--set", value)]
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "regrad.cli.main", "train", *options], check=True)
    return MetaInit.load(output), time.monotonic() - started


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `regrad train`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(1 if arguments.quick else arguments.seeds)
    settings = [*arguments.set, *(["optimizer.steps=10"] if arguments.quick else [])]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder, world = Path(name), World()
        write_lab(LabConfig(output=f"{folder}/lab", task_records=100 if arguments.quick else 4000))
        held_out = HeldOut(folder, world, 40 if arguments.quick else 400)
        for seed in seeds:
            meta_init, seconds = train(folder, seed, settings)
            scores = held_out.scores(meta_init)
            rows.append({"seed": seed, **scores, "dev F1": meta_init.notes["dev"][-1]["f1"], "seconds": seconds})
            print(rows[-1], flush=True)
    show(rows)
    figures = {
        f"{key}_{how.__name__}": how(row[key] for row in rows)
        for key in ("regrad_k1", "regrad_k3")
        for how in (min, max)
    }
    show([figures])
    if arguments.json:
        write(arguments.json, figures, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
