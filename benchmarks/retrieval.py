"""What retrieval finds on real questions: recall of the gold passages at 1, 3 and 10.

    python benchmarks/retrieval.py --data DIRECTORY --json retrieval.json      (--quick: 100 questions a set)

BM25 by its settings; with `--encoder PATH` also an encoder's vectors (exact search), and both fused in two ways. With
`--embed N` only how many synthetic passages a second the job of `regrad index` embeds, by one replica and by two.

`--data` holds the sets: `2wiki_corpus.json` and `2wiki_questions.json` (2WikiMultihopQA as HippoRAG samples it),
`pubmedqa_dev.json`, and files `*.jsonl.gz` with `question`, `passages` (id, title, text) and `gold` (ids) a line. A set
that is not there is skipped, and named. Gold of 2Wiki are the passages whose title of more than 6 letters stands in the
question; of PubMedQA the question's own abstract; a corpus is all passages of its file. Recall is the share of a
question's gold passages that are found, averaged over the questions that have any.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from common import show, write
from embed_speed import speeds

from regrad.data.passages import Passage
from regrad.retrieval.base import Retriever, open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.config import Bm25SearchConfig, DenseConfig, EncoderConfig, FuseConfig, RetrieverConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.retrieval.fused import fuse_indexes

AT = (1, 3, 10)
WAYS = {
    "one field, 0.9/0.4": RetrieverConfig(bm25=Bm25SearchConfig(k1=0.9, b=0.4, title=0.0)),
    "one field, 1.2/0.75": RetrieverConfig(bm25=Bm25SearchConfig(title=0.0)),
    "default: and title x 0.5": RetrieverConfig(),
    "papers: best of title, text": RetrieverConfig(
        bm25=Bm25SearchConfig(contents=0.0, title=1.0, text=1.0, combine="best", tie=0.5)
    ),
}
NAMES = dict(zip(WAYS, ("plain", "tuned", "default", "papers"), strict=True))
DENSE, RRF, SCORES = "dense", "fused by ranks", "fused by scores"
KNOWN = ("2wiki", "pubmedqa", "squad_dev", "squad_train", "nq_open_oracle", "musique_dev_gold")
"""The sets that docs/benchmarks.md tells of most."""
KINDS = {DENSE: "dense", RRF: "fused", SCORES: "fused_scores"}


@dataclass(frozen=True)
class QuestionSet:
    """A corpus, and questions with the ids of their gold passages."""

    name: str
    passages: Sequence[Passage]
    questions: Sequence[tuple[str, frozenset[str]]]


def question_sets(data: Path) -> Iterator[QuestionSet]:
    """Those of the sets that are there."""
    if (data / "2wiki_corpus.json").exists():
        yield _two_wiki(data)
    if (data / "pubmedqa_dev.json").exists():
        yield _pubmedqa(data)
    for path in sorted(data.glob("*.jsonl.gz")):
        if (found := _with_gold(path)) is not None:
            yield found


def _two_wiki(data: Path) -> QuestionSet:
    records = json.loads((data / "2wiki_corpus.json").read_text())
    passages = [Passage(str(i), record["title"], record["text"]) for i, record in enumerate(records)]
    questions = []
    for record in json.loads((data / "2wiki_questions.json").read_text()):
        text = record["question"].lower()
        named = [p.id for p in passages if len(p.title) > 6 and p.title.lower() in text]
        questions.append((record["question"], frozenset(named)))
    return QuestionSet("2wiki", passages, [one for one in questions if one[1]])


def _pubmedqa(data: Path) -> QuestionSet:
    records = json.loads((data / "pubmedqa_dev.json").read_text())
    passages = [Passage(key, "", "\n".join(record["CONTEXTS"])) for key, record in records.items()]
    return QuestionSet("pubmedqa", passages, [(r["QUESTION"], frozenset({key})) for key, r in records.items()])


def _with_gold(path: Path) -> QuestionSet | None:
    passages: dict[str, Passage] = {}
    questions = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            record = json.loads(line)
            if "gold" not in record or "passages" not in record:
                return None
            for one in record["passages"]:
                passages[one["id"]] = Passage(one["id"], one["title"], one["text"])
            questions.append((record["question"], frozenset(record["gold"])))
    return QuestionSet(path.name.removesuffix(".jsonl.gz"), list(passages.values()), questions)


def make_indexes(found: QuestionSet, folder: str, encoder: str) -> dict[str, tuple[str, RetrieverConfig]]:
    """The set's indexes, and every way of searching one."""
    build_index(found.passages, f"{folder}/bm25", fields=("contents", "title", "text"))
    ways = {way: (f"{folder}/bm25", settings) for way, settings in WAYS.items()}
    if encoder:
        config = DenseConfig(encoder=EncoderConfig(path=encoder), vectors="flat")
        started = perf_counter()
        build_dense_index(found.passages, f"{folder}/dense", Encoder(config.encoder), config)
        speed = len(found.passages) / (perf_counter() - started)
        print(f"{found.name}: {len(found.passages):,} passages encoded, {speed:.1f} a second", file=sys.stderr)
        ways[DENSE] = f"{folder}/dense", RetrieverConfig()
        for way, method in ((RRF, "rrf"), (SCORES, "scores")):
            parts = [f"{folder}/bm25", f"{folder}/dense"]
            fuse_indexes(FuseConfig.model_validate({"indexes": parts, "method": method}), f"{folder}/{method}")
            ways[way] = f"{folder}/{method}", RetrieverConfig()
    return ways


def measure(found: QuestionSet, ways: dict[str, tuple[str, RetrieverConfig]], limit: int) -> Iterator[dict[str, Any]]:
    """A row for every way of searching the set's indexes."""
    step = max(1, len(found.questions) // limit)  # spread over the set: neighbours are of one article
    asked = list(found.questions[::step])[:limit]
    for way, (uri, settings) in ways.items():
        with open_retriever(uri, settings) as retriever:
            started = perf_counter()
            recalls = _recalls(retriever, asked)
            milliseconds = 1e3 * (perf_counter() - started) / len(asked)
        named = {f"recall@{k}": recall for k, recall in zip(AT, recalls, strict=True)}
        sizes = {"passages": len(found.passages), "questions": len(asked)}
        yield {"set": found.name, "way": way, **sizes, **named, "ms a question": milliseconds}


def _recalls(retriever: Retriever, asked: Sequence[tuple[str, frozenset[str]]]) -> list[float]:
    """At each k of `AT`; asked 64 at a time, as an evaluation does."""
    totals = [0.0] * len(AT)
    for start in range(0, len(asked), 64):
        batch = asked[start : start + 64]
        ranked = retriever.search_ids([question for question, _ in batch], max(AT))
        for (_, gold), hits in zip(batch, ranked, strict=True):
            ids = [passage_id for passage_id, _ in hits]
            totals = [total + len(gold & set(ids[:k])) / len(gold) for total, k in zip(totals, AT, strict=True)]
    return [total / len(asked) for total in totals]


def _name(row: dict[str, Any]) -> str:
    return f"{KINDS.get(row['way'], 'bm25')}_{row['set']}_recall_at_"


def _suffix(row: dict[str, Any]) -> str:
    return f"_{NAMES[row['way']]}" if row["way"] in NAMES else ""


def _embed(encoder: str, passages: int, file: str) -> None:
    rows = speeds(encoder, passages, repeats=3)
    show(rows)
    one, two = (row["passages/s"] for row in rows)
    figures = {"embed_passages_per_s_1": one, "embed_passages_per_s_2": two, "embed_passages_per_s_2_over_1": two / one}
    if file:
        write(file, figures, rows, torch.device("cpu"))


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=Path(), type=Path, metavar="DIRECTORY")
    parser.add_argument("--embed", default=0, type=int, metavar="N", help="passages, a multiple of 16; takes --encoder")
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--encoder", default="", metavar="PATH", help="of sentence-transformers")
    parser.add_argument("--sets", nargs="*", metavar="NAME", help="only these")
    arguments = parser.parse_args()
    if arguments.embed:
        _embed(arguments.encoder, arguments.embed, arguments.json)
        return
    rows: list[dict[str, Any]] = []
    for found in question_sets(arguments.data):
        if arguments.sets and found.name not in arguments.sets:
            continue
        with tempfile.TemporaryDirectory() as folder:
            ways = make_indexes(found, folder, arguments.encoder)
            rows += measure(found, ways, 100 if arguments.quick else 5000)
    there = {row["set"] for row in rows}
    if missing := [name for name in arguments.sets or KNOWN if name not in there]:
        print(f"skipped, as {arguments.data} does not have them: {', '.join(missing)}", file=sys.stderr)
    if rows:
        show(rows)
    figures = {f"{_name(row)}{k}{_suffix(row)}": row[f"recall@{k}"] for row in rows for k in AT}
    figures |= {name.removesuffix("_default"): value for name, value in figures.items() if name.endswith("_default")}
    figures |= {name.replace("_squad_dev_", "_squad_"): value for name, value in figures.items()}
    if "bm25_2wiki_recall_at_3" in figures:
        figures["recall3_2wiki"] = figures["bm25_2wiki_recall_at_3"]
    if arguments.json:
        write(arguments.json, figures, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
