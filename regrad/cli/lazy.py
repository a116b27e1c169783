"""A group of verbs, each in a module of its own that is imported when the verb is used."""

from __future__ import annotations

import importlib
import keyword
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """Finds the verb `name` as `command` in `package.name` (`name_` for a word of Python's), when it is used.

    So `--help` and mistakes answer at once, and what one verb imports is not waited for by the others. `verbs` are the
    names with their one line of help, in the order shown.
    """

    def __init__(self, *arguments: Any, package: str, verbs: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._package, self._verbs = package, verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order given."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of this name, or None."""
        if cmd_name not in self._verbs:
            return None
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = importlib.import_module(f"{self._package}.{module}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._verbs.items()))
