"""The steps of the study: one for each cell, which trains a layer for every seed and writes what came out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from regrad.errors import EvaluationError
from regrad.storage import Storage
from studies.rag_gd.config import RagGdConfig, SetName
from studies.rag_gd.layers import TrainedLayer, constructed
from studies.rag_gd.measuring import compare, train
from studies.rag_gd.tabular import measure_tabular
from studies.rag_gd.tasks import DotProduct, Projection
from studies.step import Function, Step

Row = dict[str, Any]
"""What a seed of a cell came to: `part`, what was set, `seed` and the fields of `Compared`."""

_SYNTHETIC = ("output", "seeds", "size", "examples", "spread", "test_tasks", "training")
_TABULAR = (*_SYNTHETIC, "normalisations", "hidden", "tabular_documents")


def make_steps(config: RagGdConfig) -> list[Step]:
    """All steps, each a cell."""
    return [*_single(config), *_stacked(config), *_tabular(config)]


def _single(config: RagGdConfig) -> Iterator[Step]:
    for interface in ("projection", "dot-product"):
        for documents in config.documents:
            work = partial(_synthetic, interface=interface, documents=documents, depth=1)
            yield _step(config, f"{interface} {documents}", work, (*_SYNTHETIC, "reaches"))


def _stacked(config: RagGdConfig) -> Iterator[Step]:
    for depth in config.depths:
        for documents in config.stacked_documents:
            work = partial(_synthetic, interface="projection", documents=documents, depth=depth)
            yield _step(config, f"depth {depth} documents {documents}", work, (*_SYNTHETIC, "reaches"))


def _tabular(config: RagGdConfig) -> Iterator[Step]:
    for name in config.sets:
        yield _step(config, f"tabular {name}", partial(_tabular_set, name=name), _TABULAR)


def _step(config: RagGdConfig, name: str, work: Any, keys: tuple[str, ...]) -> Step:
    def run(settings: RagGdConfig) -> str:
        rows = work(settings)
        _cells(settings).write(_file(name), (json.dumps(rows, indent=1) + "\n").encode())
        return f"trained against constructed, relative difference {_mean(rows, 'relative'):.3f}"

    return Step(name, Function(run, config, keys), f"{config.output}/cells/{_file(name)}")


def _synthetic(config: RagGdConfig, *, interface: str, documents: int, depth: int) -> list[Row]:
    training = config.training
    rows = []
    for seed in config.seeds:
        generator = torch.Generator().manual_seed(1000 * documents + 10 * depth + seed)
        source: Projection | DotProduct = Projection(config, documents)
        if interface == "dot-product":
            source = DotProduct(config, documents, seed)
        model = TrainedLayer(2 * config.size + 1, depth, generator)
        steps = training.steps if depth == 1 else training.stacked_steps
        train(model, partial(source.draw, training.batch_size, generator), steps, training.learning_rate / depth)
        reference = constructed(source.draw(config.test_tasks, generator), depth)
        for reach in config.reaches if depth == 1 else (1.0,):
            found = compare(model, reference, source.draw(config.test_tasks, generator, reach))
            cell = {"part": interface if depth == 1 else "stacked", "documents": documents, "depth": depth}
            rows.append({**cell, "reach": reach, "seed": seed, **asdict(found)})
    return rows


def _tabular_set(config: RagGdConfig, *, name: SetName) -> list[Row]:
    return [
        {"part": "tabular", "set": name, "normalisation": normalisation, "seed": seed, **asdict(found)}
        for normalisation in config.normalisations
        for seed in config.seeds
        for found in [measure_tabular(config, name, normalisation, seed)]
    ]


def read_rows(config: RagGdConfig) -> list[Row]:
    """All rows of the cells of these settings that are done; raises `EvaluationError` for one that is damaged."""
    rows: list[Row] = []
    for step in make_steps(config):
        name = _file(step.name)
        if not _cells(config).exists(name):
            continue
        try:
            found = json.loads(_cells(config).read(name))
            rows += [{**row, "relative": float(row["relative"])} for row in found]
        except (ValueError, TypeError, KeyError) as error:
            text = f"{config.output}/cells/{name} is damaged; remove it and its note in {config.output}/steps"
            raise EvaluationError(text, code="damaged", uri=f"{config.output}/cells/{name}") from error
    return rows


def missing_cells(config: RagGdConfig) -> list[str]:
    """The names of the steps that left no rows yet."""
    return [step.name for step in make_steps(config) if not _cells(config).exists(_file(step.name))]


def _cells(config: RagGdConfig) -> Storage:
    return Storage(f"{config.output}/cells")


def _file(name: str) -> str:
    return f"{name.replace(' ', '-')}.json"


def _mean(rows: list[Row], key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)
