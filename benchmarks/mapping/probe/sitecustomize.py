"""Loaded by every Python process that finds this folder in its path: notes which files of the project do work.

A line is put at the head of each function of the project as it is imported. A tracer (`sys.settrace`) would miss what
runs in threads that Python did not start, and most of Ray's work does; it would also slow down all of torch and Ray.
"""

from __future__ import annotations

import ast
import builtins
import mmap
import os
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType

ROOT = os.environ["CODE_MAP_ROOT"] + os.sep
PACKAGES = tuple(ROOT + name + os.sep for name in os.environ["CODE_MAP_PACKAGES"].split(","))
FOLDER = Path(os.environ["CODE_MAP_FOLDER"])

with (FOLDER / "journey").open("rb") as file:
    journey = mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)  # one byte that all processes see; 0: nothing counts
notes = os.open(FOLDER / "notes", os.O_WRONLY | os.O_APPEND)  # written at once: workers end by a signal
noted: set[tuple[int, str]] = set()


def probe(path: str) -> None:
    """Note that a function of the file runs, unless it runs because a module is being imported."""
    number = journey[0]
    if number and (number, path) not in noted and not importing(sys._getframe(1)):
        noted.add((number, path))
        os.write(notes, f"{number} {path}\n".encode())


def importing(frame: FrameType | None) -> bool:
    """Whether the frame is below the top level of one of the project's modules."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(PACKAGES):
            return True
        frame = frame.f_back
    return False


class Probes(ast.NodeTransformer):
    """Puts a call of `probe` behind the docstring of each function."""

    def __init__(self, path: str) -> None:
        self._path = path

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """See the class."""
        return self._probed(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """See the class."""
        return self._probed(node)

    def _probed(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        call = ast.parse(f"__code_map_probe__({self._path!r})").body[0]
        for part in ast.walk(call):
            ast.copy_location(part, node.body[0])
        node.body.insert(ast.get_docstring(node) is not None, call)
        return node


def get_code(self: SourceFileLoader, fullname: str) -> CodeType | None:
    """As the loader's own, but for the project's files, whose cached bytecode is neither read nor written."""
    path = os.path.realpath(self.get_filename(fullname))
    if not path.startswith(PACKAGES):
        return original(self, fullname)
    tree = Probes(path.removeprefix(ROOT)).visit(ast.parse(Path(path).read_bytes(), path))
    return compile(tree, path, "exec", dont_inherit=True)


original = SourceFileLoader.get_code
SourceFileLoader.get_code = get_code  # type: ignore[assignment, method-assign]
builtins.__code_map_probe__ = probe  # type: ignore[attr-defined]
