"""Milliseconds from a question to its answer, one at a time, by every method, in one process and without a server.

    python benchmarks/serve_latency.py --json serve_latency.json      (--quick: under a minute, a small big model)

On the lab's model, and on random weights of the shape of Llama-3.2-1B with passages of about 180 tokens. All methods
answer the same questions with the same number of tokens, one after the other in an order that changes with every
question, and a ratio is the median over questions of one method's time over Direct's on the same question: so a drift
of the machine hits all alike. Atoms are in the bank's memory tier. Retrieval is in no number (all methods but Direct
need it alike); what a search takes is shown by itself. `CPU` is the processor's time of this process.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from common import show, write
from serving.single import CACHED, DIRECT, ONLINE, RAG, WAYS, Single, Timing, Way
from subjects import Subject, big_subject, lab_subject

from regrad.errors import RetrievalError
from regrad.lab.files import held_out_corpus, held_out_questions
from regrad.lab.world import World
from regrad.retrieval.base import open_retriever
from regrad.retrieval.bm25 import build_index

Timings = Mapping[Way, Sequence[Timing]]
_PARTS = ("fetch and sum", "extract", "update", "prefill", "decode")


def measure(single: Single, questions: Sequence[str], slow: int) -> Timings:
    """Every way on the questions, the slow ones on the first few; the first question warms up and does not count."""
    timings: dict[Way, list[Timing]] = {way: [] for way in WAYS}
    for way in WAYS:
        single.ask(way, 0, questions[0])
    for number, question in enumerate(questions):
        ways = [way for way in WAYS if not way.slow or number < slow]
        for turn in range(len(ways)):
            way = ways[(number + turn) % len(ways)]
            timings[way].append(single.ask(way, number, question))
    return timings


def ratio(timings: Timings, way: Way, processor: bool = False) -> float:
    """The median over questions of this way's time over Direct's."""
    pairs = zip(timings[way], timings[DIRECT], strict=False)
    if processor:
        return statistics.median(one.processor / other.processor for one, other in pairs)
    return statistics.median(one.total / other.total for one, other in pairs)


def rows(subject: Subject, timings: Timings) -> list[dict[str, Any]]:
    """One row a way; parts are medians, so they need not add up."""
    return [
        {
            "model": subject.name,
            "method": way.name,
            "questions": len(found),
            "prompt tokens": statistics.mean(item.prompt_tokens for item in found),
            "ms": statistics.median(item.total for item in found),
            "p90": sorted(item.total for item in found)[int(0.9 * (len(found) - 1))],
            "over Direct": ratio(timings, way),
            "CPU over Direct": ratio(timings, way, processor=True),
            **{part: statistics.median(item.parts.get(part, 0.0) for item in found) for part in _PARTS},
        }
        for way, found in timings.items()
    ]


def figures(timings: Timings, suffix: str) -> dict[str, float]:
    """The numbers to quote: those of the 1B shape have no suffix."""
    named = {"cached_over_direct": CACHED, "rag_over_direct": RAG, "online_over_direct": ONLINE}
    wall = {f"{name}{suffix}": ratio(timings, way) for name, way in named.items()}
    return {**wall, f"cached_over_direct_cpu{suffix}": ratio(timings, CACHED, processor=True)}


def search_milliseconds(questions: Sequence[str]) -> float | None:
    """The median of one BM25 search among the lab's 400 passages; None without Java."""
    with TemporaryDirectory() as folder:
        try:
            build_index(held_out_corpus(World()), f"{folder}/index")
            retriever, seconds = open_retriever(f"{folder}/index"), []
            for question in questions:
                started = perf_counter()
                retriever.search([question], 3)
                seconds.append(perf_counter() - started)
        except (RetrievalError, ImportError) as error:
            print(f"no search was measured: {error}")
            return None
    return 1e3 * statistics.median(seconds)


def subjects(arguments: argparse.Namespace, device: torch.device) -> Iterator[tuple[Subject, int, int, str]]:
    """Each with its number of questions, those for slow ways, and what marks its figures; one at a time in memory."""
    yield lab_subject(device, 32, 1), arguments.questions, arguments.questions, "_lab"
    if not arguments.lab_only:
        big = big_subject(device, 6, 1, arguments.quick)
        yield big, arguments.big_questions, arguments.big_slow_questions, ""


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200, help="on the lab's model")
    parser.add_argument("--big-questions", type=int, default=10, help="on the big model")
    parser.add_argument("--big-slow-questions", type=int, default=3, help="those of them for RAG, ICL and Online")
    parser.add_argument("--new-tokens", type=int, default=8, help="of every answer")
    parser.add_argument("--codec", default="float32", help="of the bank")
    parser.add_argument("--lab-only", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="fewer questions, and a small model for the big one")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.questions, arguments.big_questions, arguments.big_slow_questions = 20, 10, 5
    torch.set_num_threads(arguments.threads)
    device, table, found = torch.device(arguments.device), [], {}
    questions = [item.question for item in held_out_questions(World(), 400)]
    for subject, count, slow, suffix in subjects(arguments, device):
        with TemporaryDirectory() as folder:
            single = Single(subject, folder, arguments.codec, arguments.new_tokens)
            timings = measure(single, questions[:count], slow)
        table += rows(subject, timings)
        found |= figures(timings, suffix)
        del subject, single
    show(table)
    searching = search_milliseconds(questions[: arguments.questions])
    found |= {"search_milliseconds": searching} if searching is not None else {}
    show([{"figure": name, "value": value} for name, value in found.items()])
    if arguments.json:
        write(arguments.json, found, table, device)


if __name__ == "__main__":
    main()
