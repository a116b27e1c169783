"""Which files of a working directory are sent to a cluster."""

from __future__ import annotations

import logging
from pathlib import Path

from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files

_QUIET = logging.getLogger(f"{__name__}.quiet")
_QUIET.disabled = True


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
