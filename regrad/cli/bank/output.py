"""What the verbs of `regrad bank` take, and how they write numbers, ids and fields."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar, get_args

import click

from regrad.bank.config import CodecName
from regrad.cli.options import printable
from regrad.errors import CorpusError
from regrad.text import listed

F = TypeVar("F", bound=Callable[..., Any])

LISTED = 20

uri_argument = click.argument("uri", metavar="URI")
json_option = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")


def version_option(text: str) -> Callable[[F], F]:
    """`--version N`."""
    return click.option("--version", type=int, metavar="N", help=f"{text} (default: the current one).")


def codec_option(text: str) -> Callable[[F], F]:
    """`--codec NAME`."""
    return click.option("--codec", type=click.Choice(get_args(CodecName)), help=text)


def ids_option(text: str) -> Callable[[F], F]:
    """`--ids-from FILE`."""
    form = "one id a line, or objects with id in a .jsonl file; - is standard input"
    return click.option("--ids-from", metavar="FILE", help=f"{text}: {form}.")


def given_ids(ids_from: str | None) -> list[str] | None:
    """The ids that `--ids-from` names, or None without it; raises `CorpusError` if they cannot be read."""
    if ids_from is None:
        return None
    from regrad.bank.io.transfer import read_ids

    if ids_from != "-":
        return read_ids(ids_from)
    try:
        lines = sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise CorpusError(
            "standard input is not UTF-8 text; ids are expected, one a line", code="not_utf8", path="-"
        ) from error
    return [line for line in lines if line.strip()]


def check_ids(ids: Sequence[str]) -> None:
    """Raise `CorpusError` for an id of the command line that is not valid Unicode."""
    for passage_id in ids:
        try:
            passage_id.encode()
        except UnicodeEncodeError as error:
            raise CorpusError(f"passage id {passage_id!r:.80} is not valid UTF-8", code="not_utf8") from error


def printable_id(passage_id: str) -> str:
    """An id as it is, or escaped if it has characters that a terminal would act on."""
    return passage_id if passage_id.isprintable() else json.dumps(passage_id)


def ids_listed(ids: Sequence[str]) -> str:
    """The first ids, and how many more there are."""
    return listed([printable_id(one) for one in ids], LISTED)


def print_fields(rows: Iterable[tuple[str, str]]) -> None:
    """Write names and values in two columns."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {printable(value)}")


def print_json(value: Any) -> None:
    """Write a dataclass, or what json takes, as JSON."""
    click.echo(json.dumps(asdict(value) if is_dataclass(value) else value, indent=1))  # type: ignore[arg-type]


def command_line(name: str, uri: str) -> str:
    """A command that can be pasted into a shell."""
    return f"regrad bank {name} {shlex.quote(uri)}"
