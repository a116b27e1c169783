"""The code in numbers, and which of its files a question, a passage, a training task and an evaluation cell go through.

python benchmarks/code_map.py [--root CHECKOUT] [--json FILE] [--journeys]

Works on any checkout with the packages regrad, ray_jobs and serve_app, so that two can be compared. The journeys take
some minutes: see `mapping/journeys.py`.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import statistics
import token
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapping.journeys import NAMES, PACKAGES, walk

Function = ast.FunctionDef | ast.AsyncFunctionDef

_LAYOUT = {token.NEWLINE, token.INDENT, token.DEDENT, token.ENDMARKER, tokenize.NL, tokenize.ENCODING}
_DIRECTIVES = ("type:", "noqa", "pragma:", "fmt:", "ruff:", "mypy:")


@dataclass
class File:
    """What is read of one file."""

    path: Path
    lines: int
    code_lines: int
    comment_lines: int
    functions: list[Function]
    names: list[str]
    mentions: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)


def read(path: Path) -> File:
    """One Python file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    code, comments = _lines(text, tree)
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, Function)]
    file = File(path, len(text.splitlines()), code, comments, functions, list(_public_names(tree)))
    for node in nodes:
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            file.mentions[_name(node)] += 1
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            file.calls[_name(node.func)] += 1
    return file


def _lines(text: str, tree: ast.Module) -> tuple[int, int]:
    """Lines with code (docstrings are none), and lines with a comment for people."""
    code: set[int] = set()
    comments: set[int] = set()
    for item in tokenize.generate_tokens(io.StringIO(text).readline):
        if item.type == token.COMMENT:
            if not item.string.lstrip("#! ").startswith(_DIRECTIVES):
                comments.add(item.start[0])
        elif item.type not in _LAYOUT:
            code.update(range(item.start[0], item.end[0] + 1))
    for node in ast.walk(tree):
        # A string that stands alone: a docstring, or what is said below an attribute.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code), len(comments)


def _public_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            found = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            continue
        yield from (name for name in found if not name.startswith("_"))


def _name(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def measure(root: Path) -> dict[str, Any]:
    """All numbers of a checkout; the shares are of 1."""
    files = [read(path) for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    tests = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py")]
    lines, functions = sum(file.lines for file in files), [item for file in files for item in file.functions]
    public = [item for item in functions if not item.name.startswith("_")]
    once, twice = called_once(files), defined_twice(files)
    return {
        "files": len(files),
        "lines": lines,
        "lines_by_package": {name: sum(f.lines for f in files if root / name in f.path.parents) for name in PACKAGES},
        "lines_a_file": spread([file.lines for file in files]),
        "files_under_40_lines": sum(file.lines < 40 for file in files) / len(files),
        "files_under_50_lines": sum(file.lines < 50 for file in files) / len(files),
        "functions": len(functions),
        "lines_a_function": spread([(item.end_lineno or item.lineno) - item.lineno + 1 for item in functions]),
        "private_helpers_called_once": once,
        "private_helpers_called_once_per_1000_lines": 1000 * once / lines,
        "comment_lines": sum(file.comment_lines for file in files),
        "comment_lines_per_100_code_lines": 100
        * sum(file.comment_lines for file in files)
        / sum(file.code_lines for file in files),
        "public_functions_with_docstring": sum(ast.get_docstring(item) is not None for item in public) / len(public),
        "test_lines": sum(len(text.splitlines()) for text in tests),
        "public_names_defined_twice_or_more": len(twice),
        "names": twice,
    }


def spread(values: Sequence[int]) -> dict[str, float]:
    """Median, 90th percentile and the largest."""
    return {
        "median": statistics.median(values),
        "p90": statistics.quantiles(values, n=10, method="inclusive")[-1],
        "max": max(values),
    }


def called_once(files: Sequence[File]) -> int:
    """Private functions and methods that the tree calls at one place and mentions nowhere else.

    A name counts as the file's own where the file defines it; elsewhere it is taken for that of the file that does.
    """
    owners = Counter(name for file in files for name in {item.name for item in file.functions})
    count = 0
    for file in files:
        for name, definitions in Counter(item.name for item in file.functions).items():
            if not name.startswith("_") or name.startswith("__") or definitions > 1:
                continue
            places = [file] if owners[name] > 1 else files
            count += sum(f.calls[name] for f in places) == sum(f.mentions[name] for f in places) == 1
    return count


def defined_twice(files: Sequence[File]) -> dict[str, int]:
    """Public names at the top of more than one module, and of how many."""
    modules = Counter(name for file in files for name in set(file.names))
    return {name: count for name, count in modules.most_common() if count > 1}


def table(measured: dict[str, Any]) -> str:
    """One row a number."""
    rows = [(key, value) for key, value in measured.items() if key not in ("names", "journeys")]
    texts = [(key.replace("_", " "), _text(value)) for key, value in rows]
    journeys: dict[str, list[str]] = measured.get("journeys", {})
    texts += [(NAMES[name], f"{len(files)} files{_by_package(files)}") for name, files in journeys.items()]
    width = max(len(key) for key, _ in texts)
    return "\n".join(f"{key.ljust(width)}  {text}" for key, text in texts)


def _by_package(files: Sequence[str]) -> str:
    counts = Counter(path.partition("/")[0] for path in files)
    return f" ({', '.join(f'{name} {counts[name]}' for name in PACKAGES if counts[name])})"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout (default: this one)")
    parser.add_argument("--json", type=Path, help="write all numbers, and the files of the journeys, there")
    parser.add_argument("--journeys", action="store_true", help="walk the four journeys, too (minutes)")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    measured = measure(root)
    if arguments.journeys:
        measured["journeys"] = walk(root)
    print(table(measured))
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
