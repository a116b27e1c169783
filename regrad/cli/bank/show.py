"""How the verbs of `regrad bank` write numbers, ids and tables."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import click

from regrad.cli.text import printable
from regrad.text import counted, listed

LISTED = 20
_UNITS = ("kB", "MB", "GB", "TB", "PB")


def size(count: float) -> str:
    """A number of bytes for people, in powers of 1000."""
    if count < 1000:
        return counted(int(count), "byte")
    for unit in _UNITS:
        count /= 1000
        if count < 999.95 or unit == _UNITS[-1]:
            break
    return f"{count:.1f} {unit}"


def shown(passage_id: str) -> str:
    """An id as it is, or escaped if it has characters that a terminal would act on."""
    return passage_id if passage_id.isprintable() else json.dumps(passage_id)


def ids_listed(ids: Sequence[str]) -> str:
    """The first ids, and how many more there are."""
    return listed([shown(one) for one in ids], LISTED)


def fields(rows: Iterable[tuple[str, str]]) -> None:
    """Write names and values in two columns."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {printable(value)}")


def as_json(value: Any) -> None:
    """Write a dataclass, or what json takes, as JSON."""
    click.echo(json.dumps(asdict(value) if is_dataclass(value) else value, indent=1))  # type: ignore[arg-type]


def verb(name: str, uri: str) -> str:
    """A command that somebody can paste."""
    return f"regrad bank {name} {shlex.quote(uri)}"
