"""What an index costs as the corpus grows: building, bytes a passage, memory, and the time of a search.

    python benchmarks/search_scale.py --json search_scale.json        (--quick: 2,000 and 20,000 passages)
    python benchmarks/search_scale.py --encoder PATH --json search_scale.json

Passages are of 100 words, drawn with Zipf's frequencies (exponent 1.07) from a vocabulary of 200,000; a question is 8
words of one passage, which are mostly common ones, and so the dearest kind for BM25. Each size is measured in a process
of its own: its peak of memory, and that of its Java, are of this size alone. Peaks are VmHWM, so they include what is
mapped of the index's files. With `--encoder` also an index of vectors, drawn at random and as long as that encoder's,
of the kinds `--vectors` (auto: as `regrad index` chooses): what a search takes, with and without encoding.
With `--workers` only how many passages a second the job of `regrad index` indexes in two shards, by one worker and two.
With `--project N` what the largest size of each kind gives for N passages, in proportion: computed, not measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from common import show, write

from regrad.data.passages import Passage, encode_passages
from regrad.retrieval.base import Retriever, open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.config import DenseConfig, EncoderConfig, IndexConfig
from regrad.retrieval.dense import write_dense_index
from regrad.retrieval.embedding import EncoderIdentity, Vectors
from regrad.retrieval.encoder import Encoder
from regrad.retrieval.lucene_process import lucene
from regrad.settings import WorkersConfig

_VOCABULARY, _EXPONENT, _WORDS, _ASKED = 200_000, 1.07, 100, 8
_DRAWN = 2000
"""Passages that are drawn at once: the same passages whatever the size of the corpus."""


def zipf_passages(count: int) -> Iterator[Passage]:
    """The first `count` passages of an endless corpus."""
    frequencies = 1 / np.arange(1, _VOCABULARY + 1) ** _EXPONENT
    cumulated = np.cumsum(frequencies / frequencies.sum())
    words = list(itertools.islice(_words(), _VOCABULARY))
    for start in range(0, count, _DRAWN):
        drawn = np.searchsorted(cumulated, np.random.default_rng(start).random((_DRAWN, _WORDS)))
        for number, row in enumerate(drawn.clip(max=_VOCABULARY - 1)[: count - start], start=start):
            text = " ".join(words[place] for place in row)
            yield Passage(f"p{number}", " ".join(text.split(" ", 3)[:3]), text)


def _words() -> Iterator[str]:
    """All of two, three, ... syllables, in an order that does not depend on anything."""
    syllables = [first + second for first in "bdfgklmnprst" for second in "aeiou"]
    for length in itertools.count(2):
        yield from map("".join, itertools.product(syllables, repeat=length))


def questions_about(passages: int, count: int) -> list[str]:
    """Each of words of one passage, spread over the first 6,000, which all sizes have."""
    step = max(1, min(passages, 6000) // count)
    chosen = itertools.islice(zipf_passages(min(passages, 6000)), 0, None, step)
    return [" ".join(one.text.split(" ")[10 : 10 + _ASKED]) for one in chosen][:count]


def measure_lexical(count: int, folder: str) -> dict[str, Any]:
    """BM25 by `build_index` and `open_retriever`, as every job and server does it."""
    started = perf_counter()
    for _ in zipf_passages(count):  # what the drawing alone takes is not the index's
        pass
    drawing = perf_counter() - started
    started = perf_counter()
    build_index(zipf_passages(count), f"{folder}/bm25")
    seconds = perf_counter() - started - drawing
    built = _peaks()
    lucene().stop()
    with open_retriever(f"{folder}/bm25") as retriever:
        times = _search_times(retriever, questions_about(count, 500))
    return {
        "kind": "bm25",
        "passages": count,
        "built/s": count / seconds,
        "bytes/passage": _bytes(f"{folder}/bm25") / count,
        "searched bytes/passage": _bytes(f"{folder}/bm25/lucene") / count,
        **times,
        "build MB (python)": built[0],
        "build MB (java)": built[1],
        "search MB (java)": _peaks()[1],
    }


def measure_dense(count: int, folder: str, path: str, kind: Any) -> dict[str, Any]:
    """Vectors of this encoder's length, drawn at random, by this kind of search."""
    encoder = Encoder(EncoderConfig(path=path), "cpu")
    settings = DenseConfig(encoder=encoder.config, vectors=kind)

    def vectors(blocks: Iterator[Sequence[Passage]]) -> Iterator[Vectors]:
        draws = np.random.default_rng(0)
        for block in blocks:
            drawn = draws.standard_normal((len(block), encoder.dimensions), dtype=np.float32)
            yield drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    started = perf_counter()
    write_dense_index(zipf_passages(count), vectors, f"{folder}/dense", EncoderIdentity.of(encoder), settings)
    seconds, built = perf_counter() - started, _peaks()[0]
    asked = questions_about(count, 200)
    encoding = _times(encoder.encode_questions, [[one] for one in asked])
    with open_retriever(f"{folder}/dense") as retriever:
        times = _search_times(retriever, asked)
    return {
        "kind": json.loads(Path(folder, "dense", "encoder.json").read_text())["vectors"],
        "passages": count,
        "built/s": count / seconds,
        "bytes/passage": _bytes(f"{folder}/dense") / count,
        **times,
        "p50 of encoding": statistics.median(encoding),
        "build MB (python)": built,
    }


def _search_times(retriever: Retriever, questions: Sequence[str]) -> dict[str, float]:
    """Milliseconds of a question alone, and of 64 at once: the best 10, with their texts. All asked once before."""
    batches = [list(questions[start : start + 64]) for start in range(0, len(questions) - 63, 64)]
    for batch in batches:
        retriever.search(batch, 10)
    alone = _times(lambda asked: retriever.search(asked, 10), [[one] for one in questions])
    together = _times(lambda asked: retriever.search(asked, 10), batches)
    return {
        "p50 ms": statistics.median(alone),
        "p99 ms": float(np.percentile(alone, 99)),
        "p50 ms of 64": statistics.median(together),
        "p99 ms of 64": float(np.percentile(together, 99)),
    }


def _times(ask: Callable[[list[str]], Any], batches: Sequence[list[str]]) -> list[float]:
    found = []
    for batch in batches:
        started = perf_counter()
        ask(batch)
        found.append(1e3 * (perf_counter() - started))
    return found


def _peaks() -> tuple[float, float]:
    """The most memory, in MB, that this process ever had, and the one of its Java."""
    return _peak("self"), _peak(str(lucene().pid)) if lucene().pid else 0.0


def _peak(process: str) -> float:
    lines = Path("/proc", process, "status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def _bytes(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def by_workers(count: int, repeats: int = 3) -> list[dict[str, Any]]:
    """Passages a second of the job of `regrad index`, in two shards built one after the other and at once."""
    from ray_jobs.cluster import cluster
    from ray_jobs.index_corpus import run

    found: dict[int, list[float]] = {1: [], 2: []}
    with cluster(), tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus.jsonl")
        corpus.write_bytes(encode_passages(list(zipf_passages(count))))
        for turn in range(repeats + 1):  # one to warm up
            for workers in found:
                output, limit = f"{folder}/{turn}-{workers}", WorkersConfig(workers=workers)
                config = IndexConfig(corpus=str(corpus), output=output, threads=1, shards=2, cluster=limit)
                started = perf_counter()
                run(config)
                if turn:
                    found[workers].append(count / (perf_counter() - started))
    return [
        {"workers": workers, "passages": count, "built/s": statistics.median(turns), "turns": turns}
        for workers, turns in found.items()
    ]


def _alone(count: int, encoder: str, vectors: str) -> dict[str, Any]:
    """`measure_lexical`, or with an encoder `measure_dense`, in a process of its own."""
    command = [sys.executable, __file__, "--one", str(count), "--encoder", encoder, "--vectors", vectors]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def projected(row: dict[str, Any], passages: int) -> dict[str, Any]:
    """An index of so many passages, everything in proportion to this one: a search, too, as if nothing were skipped."""
    times = passages / row["passages"]
    return {
        "kind": row["kind"],
        "passages": passages,
        "GB": row["bytes/passage"] * passages / 1e9,
        "hours to build": passages / row["built/s"] / 3600,
        "p50 ms at most": (row["p50 ms"] - row.get("p50 of encoding", 0.0)) * times,
    }


def _figures(rows: Sequence[dict[str, Any]], vectors: str) -> dict[str, float]:
    """Million over 6 thousand for each kind of index; the names say `million` and `6k` whatever the sizes were."""
    small, large = rows[0], rows[-1]
    kind = "" if small["kind"] == "bm25" else f"{vectors.replace('-', '_')}_".replace("auto_", "dense_")
    return {
        f"{kind}million_over_6k_search_p50": large["p50 ms"] / small["p50 ms"],
        f"{kind}million_over_6k_search_p99": large["p99 ms"] / small["p99 ms"],
        f"{kind}bytes_a_passage_6k": small["bytes/passage"],
        f"{kind}bytes_a_passage_million": large["bytes/passage"],
    }


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", nargs="+", default=[6000, 1_000_000], type=int, metavar="N")
    parser.add_argument("--encoder", default="", metavar="PATH", help="of sentence-transformers: vectors, too")
    parser.add_argument("--vectors", nargs="+", default=["auto"], metavar="KIND", help="auto, flat, hnsw, ivf-pq")
    parser.add_argument("--project", default=0, type=int, metavar="N", help="passages of the last table")
    parser.add_argument("--workers", default=0, type=int, metavar="N", help="passages: only one worker against two")
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one", default=0, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            at = arguments.one, folder
            found = (
                measure_dense(*at, arguments.encoder, arguments.vectors[0])
                if arguments.encoder
                else measure_lexical(*at)
            )
        print(json.dumps(found))
        return
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    if arguments.workers:
        rows = by_workers(arguments.workers)
        show(rows)
        figures["index_passages_per_s_2_over_1"] = rows[1]["built/s"] / rows[0]["built/s"]
    else:
        sizes = [2000, 20_000] if arguments.quick else arguments.passages
        kinds = [("", "auto"), *((arguments.encoder, kind) for kind in arguments.vectors if arguments.encoder)]
        for encoder, vectors in kinds:
            of_kind = [_alone(count, encoder, vectors) for count in sizes]
            show(of_kind)
            figures |= _figures(of_kind, vectors)
            rows += of_kind
        if arguments.project:
            show([projected(row, arguments.project) for row in rows if row["passages"] == max(sizes)])
    if arguments.json:
        write(arguments.json, figures, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
