"""What the processes of a job do beside their work."""

from __future__ import annotations

import os
from pathlib import Path

import ray
import ray._private.worker


def allocator() -> dict[str, str]:
    """The environment of a process that is to allocate with jemalloc, which Ray brings for its own processes.

    Empty if Ray has none here, or the user preloads something. Ray names no public place for it.
    """
    library = Path(ray.__file__).parent / "core" / "libjemalloc.so"
    return {"LD_PRELOAD": str(library)} if library.exists() and "LD_PRELOAD" not in os.environ else {}


def silence_worker_logs() -> None:
    """Print nothing in the driver that the processes of the cluster say.

    `ray.init(log_to_driver=False)` is the public way, but keeps only the logs of workers back: errors that Ray
    publishes are printed all the same, beside the exception that tells of them. If that changes, this can go.
    """
    ray._private.worker._worker_logs_enabled = False
