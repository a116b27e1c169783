"""The report as one HTML file with everything in it. No script, and all text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from regrad.evaluation.report.grids import Grid


def page(title: str, facts: Sequence[str], grids: Sequence[Grid], figures: Sequence[tuple[str, bytes]]) -> str:
    """All of it; `figures` are (caption, SVG), which stand in it as images, in which nothing is ever run."""
    loader = PackageLoader("regrad.evaluation.report", "")
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html")
    images = [(caption, f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}") for caption, svg in figures]
    return template.render(title=title, facts=facts, grids=grids, figures=images)
