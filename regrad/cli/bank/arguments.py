"""What several verbs of `regrad bank` take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args

import click

from regrad.bank.config import CodecName
from regrad.errors import CorpusError

F = TypeVar("F", bound=Callable[..., Any])

uri_argument = click.argument("uri", metavar="URI")
json_option = click.option("--json", "as_json", is_flag=True, help="All of it as JSON, for programs.")


def version_option(text: str) -> Callable[[F], F]:
    """`--version N`."""
    return click.option("--version", type=int, metavar="N", help=f"{text} (default: the one in force).")


def codec_option(text: str) -> Callable[[F], F]:
    """`--codec NAME`."""
    return click.option("--codec", type=click.Choice(get_args(CodecName)), help=text)


def ids_option(text: str) -> Callable[[F], F]:
    """`--ids-from FILE`."""
    form = "one id a line, or objects with id in a .jsonl file; - is standard input"
    return click.option("--ids-from", metavar="FILE", help=f"{text}: {form}.")


def given_ids(ids_from: str | None) -> list[str] | None:
    """The ids that `--ids-from` names, or None without it; raises `CorpusError` if there are none, or no text."""
    if ids_from is None:
        return None
    from regrad.bank.io.export import read_ids

    if ids_from != "-":
        return read_ids(ids_from)
    try:
        lines = sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise CorpusError("standard input is not UTF-8 text: ids are expected, one a line") from error
    return [line for line in lines if line.strip()]


def check_ids(ids: Sequence[str]) -> None:
    """Raise `CorpusError` for an id of the command line that is not valid Unicode."""
    for passage_id in ids:
        try:
            passage_id.encode()
        except UnicodeEncodeError as error:
            raise CorpusError(f"passage id {passage_id!r:.80} is not valid UTF-8") from error
