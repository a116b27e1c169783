"""What messages are made of: numbers, lists, columns, and the right name that is nearest to a wrong one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_UNITS = ("kB", "MB", "GB", "TB", "PB")


def counted(count: int, noun: str) -> str:
    """`1 passage`, `1,000 passages`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def readable_size(count: float) -> str:
    """A number of bytes for people, in powers of 1000."""
    if count < 1000:
        return counted(int(count), "byte")
    for unit in _UNITS:
        count /= 1000
        if count < 999.95 or unit == _UNITS[-1]:
            break
    return f"{count:.1f} {unit}"


def readable_duration(seconds: float) -> str:
    """Seconds for people: `89 s`, `42 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def milliseconds(seconds: float) -> str:
    """A short time that is compared with others: `1234 ms`."""
    return f"{1e3 * seconds:.0f} ms"


def listed(items: Sequence[str], most: int) -> str:
    """The first `most` items, and how many more there are."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not blank; the name of its class if there is none."""
    return next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)


def in_one_line(error: BaseException, most: int | None = None) -> str:
    """All of an error's text in one line of at most `most` characters; the name of its class if it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns that are as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def nearest_name(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name that `name` is most like; empty if none is at least `cutoff` (0 to 1) like it."""
    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return near[0] if near else ""


def did_you_mean(near: str) -> str:
    """The end of a message about an unknown name: which was probably meant; empty if `near` is."""
    return f"; did you mean '{near}'?" if near else ""


def hint(name: str, known: Iterable[str]) -> str:
    """`did_you_mean` of the known name that is nearest."""
    return did_you_mean(nearest_name(name, known))
