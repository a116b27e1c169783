"""A build whose workers stop before each block as long as a file is there: who has work is then known for sure.

python -m tests.tools.held_build SETTINGS      (JSON; RAY_ADDRESS names the cluster)

The file is `BANK.hold`, and in the folder `BANK.begun` every block that was begun is a file that its worker's node
names.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import ray
from torch import Tensor

from ray_jobs.bank_actors import GradientActor
from ray_jobs.build_bank import fill
from ray_jobs.job_records import recorded
from regrad.bank.config import BuildConfig
from regrad.bank.format import Layout
from regrad.data.passages import Passage
from regrad.meta_init import read_card


class HeldActor(GradientActor):
    """The job's own actor, once it may go on."""

    def extract(self, passages: Sequence[Passage]) -> list[tuple[Tensor | None, str]]:
        """See `BlockActor`."""
        node = ray.get_runtime_context().get_node_id()
        Path(f"{self._uri}.begun", f"{node}-{uuid.uuid4().hex}").touch()
        while Path(f"{self._uri}.hold").exists():
            time.sleep(0.02)
        return super().extract(passages)


def main() -> None:
    """Build, leave the run record of the job, and print how many passages each node has computed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = BuildConfig.model_validate(json.loads(Path(sys.argv[1]).read_text()))
    card = read_card(config.meta_init)
    layout = Layout(fingerprint=card["fingerprint"], codec=config.bank.codec, subspace=card["subspace"])
    recorded(config, lambda _: print(json.dumps(fill(config, layout, HeldActor).nodes), flush=True), "build")


if __name__ == "__main__":
    # By its own name, as the workers import it.
    from tests.tools import held_build

    held_build.main()
