"""Of Ray's core: what the processes of a job do beside their work, and which files are sent to a cluster."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import ray
import ray._private.worker
from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files

_QUIET = logging.getLogger(f"{__name__}.quiet")
_QUIET.disabled = True


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


def is_shipped(file: Path, directory: Path, excludes: list[str]) -> bool:
    """Whether a file of a working directory gets to the cluster: patterns and `.gitignore` files leave others out.

    Ray says publicly which files those are, but not in code: a job without its file would only fail on the cluster.
    """
    left_out = [_get_excludes(directory, excludes)]
    place = directory
    for part in file.relative_to(directory).parts:
        left_out += get_excludes_from_ignore_files(place, include_gitignore=True, logger=_QUIET)
        place = place / part
        if any(check(place) for check in left_out):
            return False
    return True
