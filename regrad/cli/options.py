"""The two options that every verb with settings has: `--config FILE` and `--set KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from regrad.settings import builtin_config

QUARANTINED = 3
"""The exit status of a verb that has filled a bank, but for passages that could not be used."""


def settings_options(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `--config` (a built-in file by default) and `--set` to a command."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        overrides = click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, e.g. bank.codec=bf16."
        )
        config = click.option(
            "--config",
            type=click.Path(path_type=Path),
            default=builtin_config(default),
            help=f"A YAML file; by default configs/{default}.",
            show_default=False,
        )
        return config(overrides(function))

    return decorate
