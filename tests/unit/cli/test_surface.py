"""What users type, frozen: every verb with its arguments and options, every setting with its type and default.

A change of it is a change of `surface.txt`, for a reviewer to see. After one that is wanted, write that file again:

python tests/unit/cli/test_surface.py --write
"""

from __future__ import annotations

import difflib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from regrad.cli.main import regrad
from regrad.settings import Settings

FILE = Path(__file__).with_name("surface.txt")
COMMAND = "python tests/unit/cli/test_surface.py --write"


def test_the_surface_is_the_one_that_was_agreed() -> None:
    found, agreed = surface(), FILE.read_text()
    diff = "\n".join(difflib.unified_diff(agreed.splitlines(), found.splitlines(), "agreed", "found", lineterm="", n=1))
    if diff:
        pytest.fail(f"the surface has changed; if it should: {COMMAND}\n{diff}", pytrace=False)


def test_types_are_said_without_the_modules_that_they_live_in() -> None:
    kind = tuple[Annotated[str, "note"], ...] | dict[str, Settings] | Literal["a", 1] | None
    assert said(kind) == "tuple[str, ...] | dict[str, Settings] | 'a' | 1 | None"


def surface() -> str:
    """All of it as text: the verbs, what settings they read, and the settings by name."""
    lines: list[str] = []
    tops: dict[str, type[BaseModel]] = {}
    for path, command in verbs("regrad", regrad):
        lines += [path, *(f"  {parameter(item)}" for item in command.params)]
        if any("--set" in item.opts for item in command.params):
            tops[path] = settings_of(path, command)
            lines.append(f"  reads {tops[path].__name__}")
    for kind in sorted(reachable(tops.values()), key=lambda kind: kind.__name__):
        lines += ["", kind.__name__]
        lines += [f"  {setting(name, field)}" for name, field in kind.model_fields.items()]
    return "\n".join(lines) + "\n"


def verbs(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in sorted(command.list_commands(context)):
            verb = command.get_command(context, name)
            assert verb is not None, f"{path} lists {name}, but has no such verb"
            yield from verbs(f"{path} {name}", verb)


def parameter(item: click.Parameter) -> str:
    words = ["/".join([*item.opts, *item.secondary_opts])] if isinstance(item, click.Option) else [item.name or ""]
    kind = item.type
    if isinstance(item, click.Option) and item.is_flag:
        words.append("flag")
    else:
        words.append(" | ".join(kind.choices) if isinstance(kind, click.Choice) else kind.name)
    words += ["required"] * item.required + ["repeated"] * (item.multiple or item.nargs != 1)
    default = item.to_info_dict().get("default")
    if isinstance(default, Path):  # a file that comes with the program, wherever that is
        default = f"configs/{str(default).partition('/configs/')[2]}"
    return " ".join(words) + (f" = {default}" if default not in (None, False, ()) else "")


def settings_of(path: str, command: click.Command) -> type[BaseModel]:
    """The class that a verb's `--set` fills, asked of the verb itself by a key that no class has."""
    needed = ["x" for item in command.params if isinstance(item, click.Argument) and item.required]
    options = [item for item in command.params if isinstance(item, click.Option) and item.required]
    needed += [word for item in options for word in (item.opts[0], "x")]
    result = CliRunner().invoke(regrad, [*path.split()[1:], *needed, "--set", "no_such_key=1"])
    cause = result.exception and result.exception.__cause__
    assert isinstance(cause, ValidationError), f"{path}: {result.exception!r}"
    return next(kind for kind in descendants(Settings) if kind.__name__ == cause.title)


def descendants(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


def reachable(kinds: Any) -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind not in found:
                found.add(kind)
                waiting += [field.annotation for field in kind.model_fields.values()]
        else:
            waiting += get_args(kind)
    return found


def setting(name: str, field: FieldInfo) -> str:
    line = f"{name}: {said(field.annotation)}"
    if field.is_required():
        return line
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, BaseModel):
        return f"{line} = {default.model_dump(exclude_unset=True) or 'its defaults'}"
    if isinstance(default, tuple) and any(isinstance(item, BaseModel) for item in default):
        return f"{line} = {[item.model_dump(exclude_unset=True) for item in default]}"
    return f"{line} = {default!r}"


def said(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return said(arguments[0])
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(said, arguments))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(said, arguments))}]"
    if kind in (None, types.NoneType):
        return "None"
    return "..." if kind is Ellipsis else str(getattr(kind, "__name__", kind))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {COMMAND}")
    FILE.write_text(surface())
