"""What verbs share: lazily imported verbs, `--config` and `--set`, text that is safe for a terminal, waiting."""

from __future__ import annotations

import importlib
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import click

from regrad.settings import builtin_config, is_uri
from regrad.text import hint


def printable(text: str) -> str:
    """A text in which characters that a terminal would act on are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """Lines that are safe for a terminal."""
    return "\n".join(printable(line) for line in text.splitlines())


QUARANTINED = 3
"""The exit status of a verb that has filled a bank except for passages that could not be used."""


def settings_options(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `--config` (a built-in file by default) and `--set` to a command."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        overrides = click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, e.g. bank.codec=bf16."
        )
        config = click.option(
            "--config",
            type=click.Path(),
            callback=_place,
            default=builtin_config(default),
            help=f"A YAML file, at a path or a URI; by default configs/{default}.",
            show_default=False,
        )
        return config(overrides(function))

    return decorate


def _place(context: click.Context, parameter: click.Parameter, value: str | Path) -> str | Path:
    """A path as such; a URI stays text, as a path would lose one of its slashes."""
    return value if is_uri(value) else Path(value)


class LazyGroup(click.Group):
    """A group that imports a verb when it is used, so that `--help` is quick.

    `verbs` are name: (where, help), in the order shown; `where` is `module:attribute`, the attribute a command or a
    dictionary of commands by name.
    """

    def __init__(self, *arguments: Any, verbs: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order given."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of this name, or None."""
        if cmd_name not in self._verbs:
            return None
        module, _, attribute = self._verbs[cmd_name][0].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        command: click.Command = found[cmd_name] if isinstance(found, dict) else found
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's own, and an unknown verb is an error that names the nearest one."""
        if args[0] not in self._verbs and (nearest := hint(args[0], self._verbs)):
            ctx.fail(f"No such command {args[0]!r:.80}{nearest}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._verbs.items()])


_LOOK_SECONDS = 0.2


def wait_until_stopped() -> None:
    """Return at the first Ctrl-C or SIGTERM; further ones at the same time do no harm."""
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped  # no lock: a second signal may come inside this very function
        stopped = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped:
            time.sleep(_LOOK_SECONDS)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
