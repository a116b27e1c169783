"""What the verbs of `regrad keys` take."""

from __future__ import annotations

import os

import click


def _absolute(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    return value if "://" in value else os.path.abspath(value)


file_option = click.option(
    "--file",
    "uri",
    metavar="URI",
    envvar="REGRAD_KEYS",
    default="runs/keys.json",
    show_default=True,
    callback=_absolute,
    help="The file of keys, a path or URI; also from the environment variable REGRAD_KEYS.",
)
