"""This engine's side of `peers.py`: a line of JSON with prompts and adapters in, one with tokens and times out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Row
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.subspace import Update, load_adapter


def answer(lm: LanguageModel, engine: Engine, prompts: list[list[int]], updates: list[Any], count: int) -> list[Row]:
    """All requests to their end."""
    rows = []
    for ids, vector in zip(prompts, updates, strict=True):
        row = engine.submit(DecodingRequest("x", vector, count, stop=(), raw=True), lambda _: None)
        row.prompt = ids  # the ids themselves, as the peer is given them
        rows.append(row)
    while engine.step():
        pass
    return rows


def main() -> None:
    """Answer line by line."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    config = ModelConfig(path=settings["model"], dtype=settings["dtype"])
    lm = load_language_model(config, "cpu")
    lm.end_ids = ()  # every answer has the same number of tokens
    engine, known = Engine(lm, max_rows=64), dict[str, Any]()
    for line in sys.stdin:
        work = json.loads(line)
        for place in work["adapters"]:
            known.setdefault(place, load_adapter(Path(place), lm.subspace))
        updates = [(Update(lm.subspace, known[place]),) for place in work["adapters"]] or [()] * len(work["prompts"])
        wall, cpu = perf_counter(), process_time()
        rows = answer(lm, engine, work["prompts"], updates, work["new_tokens"])
        times = {"cpu": process_time() - cpu, "wall": perf_counter() - wall}
        print(json.dumps(times | {"tokens": [row.written for row in rows]}), flush=True)


if __name__ == "__main__":
    main()
