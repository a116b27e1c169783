"""How a job starts from a shell or from `ray job submit -- python -m ray_jobs.<job> --config FILE --set key=value`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from typing import TypeVar

from regrad.errors import RegradError
from regrad.settings import Settings, load_settings

S = TypeVar("S", bound=Settings)


def main(kind: type[S], run: Callable[[S], str], description: str) -> None:
    """Parse `--config` and `--set`, run the job, print its closing line; a known error is one sentence and status 2."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="YAML file, as those under configs/jobs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. bank.codec=bf16"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        print(run(load_settings(kind, arguments.config, arguments.set)))
    except RegradError as error:
        print(f"error: {error} [{error.code}]", file=sys.stderr)
        sys.exit(2)
