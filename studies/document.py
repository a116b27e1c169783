"""What the documents of all studies are made of: pictures, tables, numbers beside them, and the machine in words."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import psutil
import torch
from matplotlib.figure import Figure

from regrad.evaluation.report.figures import encoded, style
from regrad.evaluation.report.tables import Grid
from regrad.evaluation.report.writing import escape_markdown, table_lines
from regrad.models.precision import processor_name
from regrad.storage import Storage

REPORT = "report.json"
_IMAGES = "images"


class Picture(NamedTuple):
    """A picture: the name of its file, what it shows, and an SVG."""

    name: str
    caption: str
    svg: bytes


def pictures(prefix: str, drawn: Iterable[tuple[str, str, Figure]]) -> list[Picture]:
    """Figures in the style of all reports; each is (name, caption, figure), and the names get the prefix."""
    with style():  # `drawn` may draw each as it is asked for
        return [Picture(f"{prefix}-{name}", caption, encoded(figure, "svg")) for name, caption, figure in drawn]


def shown(found: Sequence[Picture], remark: str = "") -> list[str]:
    """The pictures' lines in the document, with their captions."""
    return [
        f"![{caption}]({_IMAGES}/{name}.svg)\n\n*{caption}.{remark}*"
        for name, caption in ((picture.name, escape_markdown(picture.caption)) for picture in found)
    ]


def section(grid: Grid, about: Sequence[str] = ()) -> list[str]:
    """A table under its title, after what is said about it, with its note."""
    return [f"## {grid.title}", *about, "\n".join(table_lines(grid)), escape_markdown(grid.note)]


def write_document(place: str, parts: Sequence[str], found: Sequence[Picture]) -> None:
    """Write the document of these parts, and its pictures beside it."""
    folder, name = os.path.split(place)
    storage = Storage(folder or ".")
    for picture in found:
        storage.write(f"{_IMAGES}/{picture.name}.svg", picture.svg)
    storage.write(name, ("\n\n".join(parts) + "\n").encode())


def write_numbers(output: str, numbers: Mapping[str, Any]) -> None:
    """Write `report.json`: everything that the document says, for programs."""
    Storage(output).write(REPORT, (json.dumps(numbers, indent=1) + "\n").encode())


def hardware() -> str:
    """What this machine is, in words."""
    memory = psutil.virtual_memory().total / 1024**3
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores ({processor_name()}), {memory:.0f} GB of memory, {gpu}, torch {torch.__version__}"
