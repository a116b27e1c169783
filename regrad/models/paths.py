"""Where a base model is: in a directory of this machine, in an installed package, on a storage URI, or on the hub."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from regrad.errors import ModelError

_PACKAGE = "package:"
_FILE = "file://"


def place_of(path: str) -> str:
    """`package:NAME/PATH` becomes a directory; what has another form stays. Loads nothing, so that a job can ask early.

    Raises `ModelError` for a package that is not installed, and for a local path where there is nothing.
    """
    place = _in_package(path) if path.startswith(_PACKAGE) else path
    local = place.removeprefix(_FILE)
    if _is_local(local) and not Path(local).exists():
        raise ModelError(f"there is no model at {path}", code="not_found", path=path)
    return place


def _in_package(path: str) -> str:
    name, _, inner = path.removeprefix(_PACKAGE).partition("/")
    try:
        return str(Path(str(files(name))) / inner)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{path}: the package {name} is not installed", code="package_not_found", package=name
        ) from error


def _is_local(place: str) -> bool:
    """A hub name is `name` or `organisation/name`, a URI says what it is; anything else can only be a path."""
    if "://" in place:
        return False
    return place.startswith(("/", "./", "../", "~")) or place in (".", "..") or "\\" in place or place.count("/") > 1
