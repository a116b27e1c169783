"""What each codec costs: exact match on the lab's held-out people, relative error, bytes an atom.

    python benchmarks/bank_quality.py --json bank_quality.json      (--quick: under a minute, no number of use)

One `regrad train` with the lab's settings and one worker (or `--meta-init` of an earlier one; with --quick an untrained
one), then the atoms of the 400 held-out documents, encoded and decoded with every codec, and 400 questions under the
sum of the k that BM25 found, with nothing in the prompt. The loss is in points of exact match below float32, on the
same questions. The codecs were chosen on other people (the dev split).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import show, write
from synthesis import KS, HeldOut
from torch import Tensor

from regrad.bank.codecs import CODECS, codec_for
from regrad.lab.config import LabConfig
from regrad.lab.files import write_lab
from regrad.lab.world import World
from regrad.meta_init import MetaInit, random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from regrad.settings import builtin_config, load_settings


class RoundTrip:
    """Atoms [n, P] through one codec and back; keeps what was measured on the way in `row`."""

    def __init__(self, meta_init: MetaInit, name: str) -> None:
        self._codec = codec_for(name, meta_init.subspace)
        self._alpha_P = meta_init.subspace.per_tensor(meta_init.step_sizes)
        size = self._codec.record_bytes
        self.row: dict[str, Any] = {"codec": name, "bytes": size, "ratio": 4 * meta_init.subspace.size / size}

    def __call__(self, atoms: Tensor) -> Tensor:
        """What a reader of the bank gets."""
        started = time.perf_counter()
        records = self._codec.encode(atoms)
        encoded = time.perf_counter()
        found = self._codec.decode(records)
        decoded = time.perf_counter()
        self.row["error"] = relative_error(found, atoms)
        self.row["weighted error"] = relative_error(found * self._alpha_P, atoms * self._alpha_P)
        self.row["encode ms"] = 1e3 * (encoded - started) / len(atoms)
        self.row["decode ms"] = 1e3 * (decoded - encoded) / len(atoms)
        return found


def relative_error(found: Tensor, atoms: Tensor) -> float:
    """The norm of the difference over the norm, the mean over atoms."""
    return float(((found - atoms).norm(dim=1) / atoms.norm(dim=1)).mean())


def measure(meta_init: MetaInit, held_out: HeldOut, name: str) -> dict[str, Any]:
    """One row; `weighted error` is the error after multiplication by the step sizes, which is what an update gets."""
    trip = RoundTrip(meta_init, name)
    scores = held_out.scores(meta_init, trip)
    return {**trip.row, **scores}


def with_losses(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `loss_k...`: points of exact match below float32."""
    exact = next(row for row in rows if row["codec"] == "float32")
    return [{**row, **{f"loss_k{k}": 100 * (exact[f"regrad_k{k}"] - row[f"regrad_k{k}"]) for k in KS}} for row in rows]


def em_loss_at(ratio: float, rows: Sequence[dict[str, Any]]) -> float:
    """The loss in points, at the worse k, of the largest codec that is at most 1/ratio of float32."""
    row = min((row for row in rows if row["ratio"] >= ratio), key=lambda row: float(row["ratio"]))
    return max(float(row[f"loss_k{k}"]) for k in KS)


def train(folder: Path) -> MetaInit:
    """One run of `regrad train` on the lab."""
    write_lab(LabConfig(output=f"{folder}/lab"))
    values = [f"tasks={folder}/lab/tasks.jsonl", f"dev={folder}/lab/dev.jsonl", f"output={folder}/meta-init"]
    options = [part for value in [*values, "cluster.workers=1"] for part in ("--set", value)]
    subprocess.run([sys.executable, "-m", "regrad.cli.main", "train", *options], check=True)
    return MetaInit.load(f"{folder}/meta-init")


def untrained() -> MetaInit:
    """No use for answers, but its atoms are encoded and decoded like any others."""
    config = load_settings(ModelConfig, builtin_config("models/lab.yaml"))
    return random_meta_init(load_language_model(config, "cpu"), step_size=10.0)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--meta-init", default="", metavar="PATH", help="a lab MetaInit, instead of training one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        if arguments.meta_init:
            meta_init = MetaInit.load(arguments.meta_init)
        else:
            meta_init = untrained() if arguments.quick else train(Path(name))
        held_out = HeldOut(Path(name), World(), 40 if arguments.quick else 400)
        rows = with_losses([measure(meta_init, held_out, codec) for codec in CODECS])
    show(rows)
    figures = {f"em_loss_at_{ratio}x": em_loss_at(ratio, rows) for ratio in (16, 32)}
    show([figures])
    if arguments.json:
        write(arguments.json, figures, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
