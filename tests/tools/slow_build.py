"""The job that builds a bank, with workers so slow that something can happen to the cluster meanwhile.

python tests/tools/slow_build.py SECONDS KEY=VALUE ...      settings of `configs/jobs/build-lab.yaml`
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

from torch import Tensor

from ray_jobs.bank_actors import GradientActor
from ray_jobs.build_bank import describe, fill
from regrad.bank.config import BuildConfig
from regrad.bank.format import Layout
from regrad.data.passages import Passage
from regrad.meta_init import read_card
from regrad.settings import builtin_config, load_settings


def slow_actor(seconds: float) -> type[GradientActor]:
    """The job's own, which takes so many seconds more for each block."""

    class SlowActor(GradientActor):
        def extract(self, passages: Sequence[Passage]) -> list[tuple[Tensor | None, str]]:
            time.sleep(seconds)
            return super().extract(passages)

    return SlowActor


def main() -> None:
    """As `ray_jobs.build_bank` from a shell, with the other actor."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_settings(BuildConfig, builtin_config("jobs/build-lab.yaml"), sys.argv[2:])
    card = read_card(config.meta_init)
    layout = Layout(fingerprint=card["fingerprint"], codec=config.bank.codec, subspace=card["subspace"])
    print(describe(fill(config, layout, slow_actor(float(sys.argv[1]))).manifest, config.bank.uri))


if __name__ == "__main__":
    main()
