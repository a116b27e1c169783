"""The document, its pictures and `report.json`, from the rows of the study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

from studies.document import Picture, hardware, pictures, shown, write_document, write_numbers
from studies.rag_gd.config import RagGdConfig
from studies.rag_gd.findings import choose, distinct, over_seeds, verdict
from studies.rag_gd.plan import Row, missing_cells, read_rows

_DOCUMENT = "rag-gd-boundary.md"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_PANELS = (("relative", "relative difference"), ("cosine", "cosine of sensitivities"))
_TABLES = (
    ("One layer: number of documents", ("projection", "dot-product"), ("part", "documents", "reach")),
    ("Stacks with shared weights, projection", ("stacked",), ("depth", "documents")),
    ("An embedding before the layer, tabular sets", ("tabular",), ("set", "normalisation")),
)
_FIGURES = ("difference", "relative", "cosine", "distance", "trained_error", "constructed_error")


def write_report(config: RagGdConfig, seconds: float) -> str:
    """Write everything; returns one line that says where."""
    rows = read_rows(config)
    place = config.report or f"{config.output}/{_DOCUMENT}"
    drawn = pictures("rag-gd", _pictures(rows))
    write_document(place, document(config, rows, drawn, seconds), drawn)
    settings = config.model_dump(mode="json", exclude={"output", "report"})
    numbers = {"settings": settings, "hardware": hardware(), "seconds": round(seconds), "rows": rows}
    write_numbers(config.output, numbers)
    return f"{len(rows)} rows of {len(config.seeds)} seeds; report at {place}"


def _pictures(rows: Sequence[Row]) -> Iterator[tuple[str, str, Figure]]:
    single = choose(rows, reach=1.0, depth=1)
    yield "documents", "One layer, by the number of documents", _panels(single, "documents", "part")
    wide = [row for row in choose(rows, depth=1) if row["documents"] == max(distinct(single, "documents"))]
    yield (
        "reach",
        "Test inputs from U(-a, a), trained at a = 1, with the most documents",
        _panels(wide, "reach", "part"),
    )
    stacks = [*choose(single, part="projection"), *choose(rows, part="stacked")]
    yield "depth", "Projection interface, by depth", _panels(stacks, "documents", "depth")
    tabular = choose(rows, part="tabular")
    if tabular:
        yield "tabular", "An embedding before the layer", _panels(tabular, "normalisation", "set")


def _panels(rows: Sequence[Row], x: str, group: str) -> Figure:
    """Every seed a dot, the mean of a group's seeds a line; groups stand slightly apart so that all are visible."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, len(_PANELS))
    places = sorted(distinct(rows, x)) if x != "normalisation" else distinct(rows, x)
    groups = distinct(rows, group)
    for axes, (key, label) in zip(panels, _PANELS, strict=True):
        for number, name in enumerate(groups):
            colour = _COLOURS[number % len(_COLOURS)]
            apart = 0.08 * (number - (len(groups) - 1) / 2)
            found = [(i, choose(rows, **{x: place, group: name})) for i, place in enumerate(places)]
            found = [(i, cell) for i, cell in found if cell]
            label_of = f"{group} {name}" if isinstance(name, int) else str(name)
            means = [over_seeds(cell, key).mean for _, cell in found]
            axes.plot([i + apart for i, _ in found], means, color=colour, linewidth=1.3, label=label_of)
            dots = [(i + apart, row[key]) for i, cell in found for row in cell]
            axes.scatter(*zip(*dots, strict=True), color=colour, s=14, alpha=0.8)
        axes.set_xticks(range(len(places)), [str(place) for place in places])
        axes.set_xlabel(x.replace("reach", "a"))
        axes.set_ylabel(label)
    panels[0].set_ylim(bottom=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def document(config: RagGdConfig, rows: Sequence[Row], drawn: Sequence[Picture], seconds: float) -> list[str]:
    """The parts of it as Markdown; no number is written by hand."""
    parts = ["# Where attention stops being gradient descent", *_head(config, seconds), "## Verdict"]
    parts.append("\n".join(f"- {sentence}" for sentence in verdict(rows)))
    parts += ["## Pictures", *shown(drawn, " Dots are seeds.")]
    for title, kinds, keys in _TABLES:
        if chosen := [row for row in rows if row["part"] in kinds]:
            parts += [f"## {title}", "\n".join(_table(chosen, keys))]
    return [*parts, "## Every seed", "\n".join(_seeds(rows))]


def _head(config: RagGdConfig, seconds: float) -> Iterator[str]:
    training = config.training
    yield (
        "Written by `python -m studies.rag_gd` from its rows: linear self-attention that was trained, beside the "
        "constructed layer that is gradient descent ([rag-gd.md](rag-gd.md)) with the step that is best by line "
        f"search. {seconds / 60:.0f} minutes of work on {hardware()}, one thread, much other work beside it."
    )
    if config.quick:
        yield "**A quick run**: too little training for a verdict. It shows that everything runs."
    if missing := missing_cells(config):
        yield f"**Not run yet**, so nothing is said of them: {', '.join(missing)}."
    yield (
        "**Far less training than the paper's** (8,000 to 40,000 steps of SGD): "
        f"{training.steps} steps of Adam for one layer, {training.stacked_steps} for a stack, {training.tabular_steps} "
        f"for an embedding, {training.batch_size} fresh tasks a step, starting near the identity. A difference below "
        "is what is left after this much training, and no bound on what more would reach; both errors stand beside it."
    )
    yield (
        "Relative difference: root mean square of trained minus constructed prediction over that of the constructed "
        "one (1: as far as predicting 0 is). Sensitivities are derivatives by the test input. Intervals are 95 % by "
        f"Student's t over the seeds ({len(config.seeds)}). Tabular sets are those that come inside scikit-learn and "
        "two synthetic heavy-tailed ones, not the paper's four. What the paper leaves open is stated in "
        "`studies/rag_gd/tasks.py` and `tabular.py`."
    )


def _table(rows: Sequence[Row], keys: tuple[str, ...]) -> Iterator[str]:
    yield f"| {' | '.join((*keys, *_FIGURES)).replace('_', ' ').replace('reach', 'a')} |"
    yield f"|{'---|' * len(keys)}{'---:|' * len(_FIGURES)}"
    for place in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        cell = choose(rows, **dict(zip(keys, place, strict=True)))
        yield f"| {' | '.join((*map(str, place), *(str(over_seeds(cell, key)) for key in _FIGURES)))} |"


def _seeds(rows: Sequence[Row]) -> Iterator[str]:
    yield "| cell | seeds: relative difference | seeds: cosine |"
    yield "|---|---|---|"
    keys = ("part", "set", "normalisation", "depth", "documents", "reach")
    for place in dict.fromkeys(tuple(row.get(key) for key in keys) for row in rows):
        cell = choose(rows, **dict(zip(keys, place, strict=True)))
        named = ", ".join(f"{key} {value}" for key, value in zip(keys, place, strict=True) if value is not None)
        lists = [", ".join(f"{value:.3f}" for value in over_seeds(cell, key).values) for key in ("relative", "cosine")]
        yield f"| {named.removeprefix('part ')} | {lists[0]} | {lists[1]} |"
