"""Errors: their codes are frozen, their text is free."""

from __future__ import annotations

import ast
import copy
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from regrad.errors import BankConflict, BankError, FingerprintMismatch, RegradError

FILE = Path(__file__).with_name("error_codes.txt")
ROOT = Path(__file__).parents[2]
COMMAND = "python tests/unit/test_errors.py --write"


def test_the_codes_are_those_that_were_agreed() -> None:
    diff = "\n".join(difflib.unified_diff(FILE.read_text().splitlines(), codes(), "agreed", "found", lineterm="", n=0))
    if diff:
        pytest.fail(f"codes of errors have changed; if they should: {COMMAND}\n{diff}", pytrace=False)


def test_a_code_is_the_class_and_the_part_that_the_raiser_gives() -> None:
    assert BankError("no bank").code == "bank"
    error = BankError("no bank at s3://b", code="not_found", uri="s3://b")
    assert (error.code, error.fields, str(error)) == ("bank.not_found", {"uri": "s3://b"}, "no bank at s3://b")


@pytest.mark.parametrize(
    "error",
    [BankError("no bank", code="not_found", uri="s3://b"), FingerprintMismatch("a", "b"), BankConflict("s3://b", 7)],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_code_and_fields_when_it_is_pickled(error: RegradError) -> None:
    found = copy.copy(error)  # by the same protocol as pickle, which is not allowed to read here
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


# Raised where the class is an argument or an attribute: what each such expression can stand for.
_READERS = ("CorpusError", "EvaluationError")
_CHOSEN: dict[str, tuple[str, ...]] = {
    "error": _READERS,
    "self.raises": _READERS,
    "record.raises": _READERS,
    "item.error": ("AtomNotFound", "AtomDamaged", "StorageError"),
}
# What a bank's reader notes, and `BankReader` raises with the same class and code.
_NOTED, _NOTED_CLASS, _NOTED_CODE = "Fetched", "AtomNotFound", "item.code"
_NAMED = "CardKind"  # its own name begins the codes of its errors


def codes() -> list[str]:
    """The area of every class, and every code that the source gives to one."""
    packages = ("regrad", "ray_jobs", "serve_app", "studies")
    return _Source([path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]).codes()


class _Source:
    def __init__(self, paths: list[Path]) -> None:
        self._trees = [(path, ast.parse(path.read_text())) for path in paths]
        self._areas: dict[str, str] = {}
        classes = [node for node in self._nodes() if isinstance(node, ast.ClassDef)]
        for node in classes:
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "area":
                    self._areas[node.name] = ast.literal_eval(line.value)
        self._calls = [node for node in self._nodes() if isinstance(node, ast.Call)]
        functions = (node for node in self._nodes() if isinstance(node, ast.FunctionDef))
        self._takers = {node.name for node in functions if "code" in [argument.arg for argument in node.args.args]}
        registries = (call.args[1] for call in self._calls if ast.unparse(call.func) == "Registry")
        self._chosen = _CHOSEN | {"self._error": tuple(sorted({ast.unparse(error) for error in registries}))}

    def _nodes(self) -> Iterator[ast.AST]:
        return (node for _, tree in self._trees for node in ast.walk(tree))

    def codes(self) -> list[str]:
        found = set(self._areas.values())
        for path, tree in self._trees:
            for function, call in _calls_in(tree):
                found.update(self._codes_of(call, function, path))
        return sorted(found)

    def _codes_of(self, call: ast.Call, function: ast.FunctionDef | None, path: Path) -> Iterator[str]:
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        code = given.get("code")
        if code is None or ast.unparse(code) == _NOTED_CODE:
            return
        name = ast.unparse(call.func)
        classes = self._chosen.get(name, (name.rpartition(".")[2],))
        if name == _NOTED:
            if not isinstance(code, ast.Constant):
                return  # that of an error, which is listed where it is raised
            classes = (ast.unparse(given["error"]) if "error" in given else _NOTED_CLASS,)
        where = f"{path.relative_to(ROOT)}:{call.lineno}"
        assert classes[0][0].isupper() or name in self._takers, f"{where}: add the classes of {name} to _CHOSEN"
        for known in self._areas.keys() & set(classes):
            parts = self._texts(code, function)
            assert parts, f"{where}: it does not show which codes {ast.unparse(code)} can be: pass a literal"
            yield from (f"{self._areas[known]}.{part}" for part in parts)

    def _texts(self, value: ast.expr, function: ast.FunctionDef | None) -> set[str]:
        """The texts that an expression can be: a literal, one of two, or a variable that holds literals."""
        if isinstance(value, ast.Constant):
            return {value.value}
        if isinstance(value, ast.IfExp):
            return self._texts(value.body, function) | self._texts(value.orelse, function)
        if isinstance(value, ast.JoinedStr) and ast.unparse(value).startswith("f'{self.name}_"):
            kinds = {call.args[0] for call in self._calls if ast.unparse(call.func) == _NAMED}
            return {ast.literal_eval(kind) + ast.literal_eval(value.values[1]) for kind in kinds}
        if not isinstance(value, ast.Name) or function is None:
            return set()
        found = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == value.id:
                found |= self._texts(node.value, function)
            elif isinstance(node, ast.For) and ast.unparse(node.target).strip("()").startswith(f"{value.id}, "):
                found |= {row[0] for row in ast.literal_eval(node.iter)}
        return found | self._arguments(value.id, function)

    def _arguments(self, name: str, function: ast.FunctionDef) -> set[str]:
        """The literals that callers pass for a parameter, and its default."""
        names = [argument.arg for argument in function.args.args]
        if name not in names:
            return set()
        place = names.index(name)
        found = [*function.args.defaults[len(function.args.defaults) - len(names) + place :][:1]]
        for call in self._calls:
            if ast.unparse(call.func).rpartition(".")[2] == function.name:
                found += [*call.args[place : place + 1], *(word.value for word in call.keywords if word.arg == name)]
        return {node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _calls_in(
    tree: ast.AST, function: ast.FunctionDef | None = None
) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
    """Every call with the innermost function around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield function, node
        yield from _calls_in(node, node if isinstance(node, ast.FunctionDef) else function)


if __name__ == "__main__" and "--write" in sys.argv:
    FILE.write_text("\n".join(codes()) + "\n")
