"""The authors' code, imported from a directory that holds it. Nothing of it is in this repository."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


@dataclass(frozen=True)
class Release:
    """The modules of one release, by name."""

    modules: dict[str, ModuleType]

    def __getattr__(self, name: str) -> Any:
        return self.modules[name]


def open_regrad(folder: str) -> Release:
    """The ReGrad release (github.com/oneal2000/ReGrad, e6b8384 when this was written)."""
    release = _opened(Path(folder) / "src", ["basic", "ICL", "evaluate", "Meta"])
    release.Meta.tqdm = lambda items, **settings: items
    return release


def open_prag(folder: str) -> Release:
    """The PRAG release (github.com/oneal2000/PRAG, e03742e)."""
    return _opened(Path(folder) / "src", ["prompt_template", "utils", "encode"])


def _opened(source: Path, names: Sequence[str]) -> Release:
    if not source.is_dir():
        raise SystemExit(f"{source} is no directory; give a checkout of the release")
    _stand_in_for_what_is_not_installed()
    before = set(sys.modules)
    with _on_path(source), _quiet():
        modules = {name: importlib.import_module(name) for name in names}
    for name in set(sys.modules) - before:
        # Both releases call their files `encode` and the like: what is loaded stays, its name becomes free.
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(source)):
            del sys.modules[name]
    return Release(modules)


@contextmanager
def lazy_imports(release: Release) -> Iterator[None]:
    """Inside the block the release's functions can import its own modules."""
    sys.modules.update(release.modules)
    try:
        yield
    finally:
        for name in release.modules:
            sys.modules.pop(name, None)


@contextmanager
def _on_path(source: Path) -> Iterator[None]:
    sys.path.insert(0, str(source))
    try:
        yield
    finally:
        sys.path.remove(str(source))


@contextmanager
def _quiet() -> Iterator[None]:
    """The release sets up logging at its finest level when it is imported."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def _stand_in_for_what_is_not_installed() -> None:
    """Modules that the release imports and that decide nothing here: a faster JSON, and a reader of number words."""
    if not _there("ujson"):
        sys.modules["ujson"] = json
    if not _there("word2number"):
        words = ModuleType("word2number")
        words.w2n = ModuleType("w2n")  # type: ignore[attr-defined]
        sys.modules["word2number"] = words
    if not hasattr(torch.backends.cuda, "sdp_kernel"):  # of the release's torch 2.0, deprecated since
        torch.backends.cuda.sdp_kernel = lambda **kernels: nullcontext()


def _there(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True
