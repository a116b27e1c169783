"""How fast a corpus is embedded by one replica of an encoder and by two: for `benchmarks/retrieval.py`."""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from ray_jobs.cluster import cluster, run_task
from ray_jobs.embedding import embedded_parts
from ray_jobs.parts import finished
from regrad.data.passages import Passage, encode_passages
from regrad.retrieval.config import DenseConfig, EncoderConfig, IndexConfig
from regrad.retrieval.embedding import EncoderIdentity
from regrad.retrieval.encoder import Encoder
from regrad.settings import WorkersConfig
from regrad.storage import Storage, parts_uri

_PART, _WARM_UP, _WORDS = 16, 4, 100


def synthetic_passages(count: int) -> Iterator[Passage]:
    """Passages of about as many words as an article's paragraph has, drawn by a seed."""
    draws = random.Random(0)
    syllables = [first + second for first in "bdfgklmnprst" for second in "aeiou"]
    words = ["".join(draws.choices(syllables, k=draws.randint(1, 4))) for _ in range(2000)]
    for number in range(count):
        yield Passage(f"p{number}", " ".join(draws.choices(words, k=3)), " ".join(draws.choices(words, k=_WORDS)))


def speeds(encoder: str, passages: int, repeats: int) -> list[dict[str, Any]]:
    """A row for one replica and one for two: passages a second, median and all turns, which alternate."""
    config = EncoderConfig(path=encoder)
    identity = EncoderIdentity.of(Encoder(config, "cpu"))
    found: dict[int, list[float]] = {1: [], 2: []}
    with cluster(), tempfile.TemporaryDirectory() as folder:
        Path(folder, "corpus.jsonl").write_bytes(encode_passages(list(synthetic_passages(passages))))
        for turn in range(repeats):
            for workers in found:
                settings = IndexConfig(
                    corpus=f"{folder}/corpus.jsonl",
                    output=f"{folder}/{turn}-{workers}",
                    dense=DenseConfig(encoder=config, part_passages=_PART),
                    cluster=WorkersConfig(workers=workers),
                )
                found[workers].append(run_task(_speed, settings, identity))
    return [
        {"replicas": workers, "passages": passages, "passages/s": statistics.median(turns), "turns": turns}
        for workers, turns in found.items()
    ]


def _speed(config: IndexConfig, identity: EncoderIdentity) -> float:
    """From when the first parts are written, so without loading models, to when the last one is."""
    ray.data.DataContext.get_current().wait_for_min_actors_s = 300  # else the first replica would begin alone
    list(finished(embedded_parts(config, identity)))
    written = sorted(seconds for _, seconds in Storage(parts_uri(config.output)).files().values())
    return _PART * (len(written) - _WARM_UP) / (written[-1] - written[_WARM_UP - 1])
