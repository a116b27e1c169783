"""A server on the lab under load through HTTP, against the authors' way: one question at a time, weights written.

    python benchmarks/serve_load.py --json serve_load.json      (--quick: under a minute)

The server is the real Ray Serve application with its default settings, and once more with `embedded: true` (retriever
and bank loader inside the gateway). The users are a process of their own, and each
asks about other people than the others (k=3: another update for every question). First as many users as the table
says, each asking again when it has its answer, then requests that come at random at 50 and 80 % of the highest
throughput. The authors' way stands behind the same proxy as a deployment of one replica, and in this process without
any server and without the search. Ours and theirs are measured in turn, at 16 users, and the ratio is the median over
the turns. Answers under load are compared with those that the same questions got alone.

`CPU ms` is what all processes of the server computed, over the requests: other work on the machine hardly changes it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import show, write
from serving.authors import Authors, deploy_authors, in_process, write_atoms
from serving.engine import InProcess
from serving.lab import Lab, lab

from ray_jobs.cluster import cluster
from regrad.planning.users import RequestOutcome, Traffic, run
from regrad.planning.watching import processor_seconds, spent_by_role
from regrad.retrieval.base import open_retriever
from serve_app.app import anywhere, deploy, serving

_EMBEDDED, _EMBEDDED_PATH = "regrad embedded, HTTP", "/embedded"
_OURS, _THEIRS, _IN_PROCESS = "regrad, HTTP", "authors' way, HTTP", "authors' way, in process"
_ENGINE = "regrad's engine, in process"
_COMPARED = 16


class Bench:
    """Runs loads one after the other and keeps a row and the outcomes of each."""

    def __init__(self, bodies: Sequence[dict[str, Any]]) -> None:
        self._bodies = bodies
        self.rows: list[dict[str, Any]] = []
        self.outcomes: dict[str, list[RequestOutcome]] = {_OURS: [], _EMBEDDED: [], _THEIRS: []}

    def load(self, system: str, url: str, seconds: float, users: int = 0, rate: float = 0.0) -> float:
        """One load; returns answers a second."""
        before = processor_seconds()
        found = run(Traffic(url, self._bodies, seconds, users, rate, seed=len(self.rows)))
        computed = sum(spent_by_role(before).values())
        self.rows.append(_row(system, f"{users} users" if users else f"{rate:.0f}/s", found, computed))
        self.outcomes[system] += found
        print(self.rows[-1], flush=True)
        return float(self.rows[-1]["answers/s"])

    def alone(self, url: str) -> dict[int, str]:
        """Each question's answer when nothing else is asked."""
        found = run(Traffic(url, self._bodies, 600.0, users=1, once=True))
        return {item.body: item.answer for item in found if item.status == 200}

    def authors_here(self, authors: Authors, found: Sequence[Sequence[str]], seconds: float) -> float:
        """The authors' way without a server; returns answers a second."""
        questions = [body["question"] for body in self._bodies]
        answers, each, processor = in_process(authors, questions, found, seconds)
        outcomes = [
            RequestOutcome(i % len(questions), 0.0, s, 200, a, 1)
            for i, (a, s) in enumerate(zip(answers, each, strict=True))
        ]
        self.rows.append(_row(_IN_PROCESS, "1 user", outcomes, processor, sum(each)))
        print(self.rows[-1], flush=True)
        return float(self.rows[-1]["answers/s"])

    def engine_here(self, engine: InProcess, found: Sequence[Sequence[str]], seconds: float) -> float:
        """The engine without a server, 16 questions at a time; returns answers a second."""
        questions = [body["question"] for body in self._bodies]
        started, processor = time.perf_counter(), time.process_time()
        answers = engine.run(questions, found, _COMPARED, seconds)
        took, spent_here = time.perf_counter() - started, time.process_time() - processor
        outcomes = [
            RequestOutcome(i % len(questions), 0.0, float("nan"), 200, answer, _COMPARED)
            for i, answer in enumerate(answers)
        ]
        self.rows.append(_row(_ENGINE, f"{_COMPARED} at a time", outcomes, spent_here, took))
        print(self.rows[-1], flush=True)
        return float(self.rows[-1]["answers/s"])


def _row(
    system: str, load: str, found: Sequence[RequestOutcome], processor: float, seconds: float = 0.0
) -> dict[str, Any]:
    right = [item for item in found if item.status == 200]
    times = sorted(item.seconds for item in right) or [float("nan")]
    return {
        "system": system,
        "load": load,
        "requests": len(found),
        "answers/s": len(right) / (seconds or max(item.due + item.seconds for item in found)),
        "p50 ms": 1e3 * statistics.median(times),
        "p99 ms": 1e3 * times[int(0.99 * (len(times) - 1))],
        "errors": len(found) - len(right),
        "mean batch": statistics.mean(item.batch_size for item in right) if right else 0.0,
        "CPU ms": 1e3 * processor / max(1, len(right)),
    }


def measure(bench: Bench, url: str, theirs: str, here: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """All loads, in turn where they are compared; returns the numbers to quote."""
    seconds, embedded = arguments.seconds, url + _EMBEDDED_PATH
    ratios, embedded_ratios, in_process_ratios, engine_ratios = [], [], [], []
    for address, system in ((url, _OURS), (embedded, _EMBEDDED), (theirs, _THEIRS)):
        bench.load(system, address, seconds, users=_COMPARED)  # warms up
    bench.rows.clear()
    alone = bench.alone(url)
    for _ in range(arguments.turns):
        ours = bench.load(_OURS, url, seconds, users=_COMPARED)
        within = bench.load(_EMBEDDED, embedded, seconds, users=_COMPARED)
        authors_served = bench.load(_THEIRS, theirs, seconds, users=_COMPARED)
        ratios.append(ours / authors_served)
        embedded_ratios.append(within / authors_served)
        authors, engine, found = here
        theirs_here = bench.authors_here(authors, found, seconds)
        in_process_ratios.append(ours / theirs_here)
        engine_ratios.append(bench.engine_here(engine, found, seconds) / theirs_here)
    for users in arguments.users:
        bench.load(_EMBEDDED, embedded, seconds, users=users)
    best = max(bench.load(_OURS, url, seconds, users=users) for users in arguments.users)
    for share in (0.5, 0.8):
        bench.load(_OURS, url, seconds, rate=share * best)
    ours_all = bench.outcomes[_OURS] + bench.outcomes[_EMBEDDED]
    answered = [item for item in ours_all if item.status == 200 and item.body in alone]
    return {
        "throughput_ratio_16_users": statistics.median(ratios),
        "throughput_ratio_16_users_embedded": statistics.median(embedded_ratios),
        "cpu_ms_an_answer_16_users": _processor(bench.rows, _OURS),
        "cpu_ms_an_answer_16_users_embedded": _processor(bench.rows, _EMBEDDED),
        "throughput_ratio_16_users_vs_in_process": statistics.median(in_process_ratios),
        "engine_ratio_16_in_process": statistics.median(engine_ratios),
        "cpu_ratio_16_users": _processor(bench.rows, _THEIRS) / _processor(bench.rows, _OURS),
        "errors": sum(row["errors"] for row in bench.rows if row["system"] in (_OURS, _EMBEDDED)),
        "answers_compared": len(answered),
        "answers_unlike_alone": sum(item.answer != alone[item.body] for item in answered),
        "answers_unlike_authors": sum(
            item.answer != alone.get(item.body, item.answer) for item in bench.outcomes[_THEIRS] if item.status == 200
        ),
    }


def _processor(rows: Sequence[dict[str, Any]], system: str) -> float:
    return statistics.median(row["CPU ms"] for row in rows if row["system"] == system and row["load"] == "16 users")


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta-init", default="", metavar="PATH", help="a lab MetaInit, instead of an untrained one")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=10.0, help="of every load")
    parser.add_argument("--turns", type=int, default=3, help="of ours and theirs at 16 users")
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="two short loads, 50 questions")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.turns, arguments.users = 2.0, 1, [1, 64]
    torch.set_num_threads(1)
    with lab(arguments.meta_init, 50 if arguments.quick else 400) as world:
        bench = Bench(world.bodies())
        figures = _served(bench, world, arguments)
    show(bench.rows)
    show([{"figure": name, "value": value} for name, value in figures.items()])
    if arguments.json:
        write(arguments.json, figures, bench.rows, torch.device("cpu"))


def _served(bench: Bench, world: Lab, arguments: argparse.Namespace) -> dict[str, Any]:
    places = f"{world.folder}/meta-init", f"{world.folder}/atoms"
    write_atoms(f"{world.folder}/bank", Path(places[1]))
    hits = open_retriever(f"{world.folder}/index").search([item.question for item in world.questions], 3)
    found = [[hit.passage.id for hit in one] for one in hits]
    here = Authors(*places), InProcess(world.folder), found
    with cluster(), serving(world.config(), anywhere()) as url:
        deploy(world.config(embedded=True), "embedded", _EMBEDDED_PATH)
        theirs = url + deploy_authors(*places, f"{world.folder}/index")
        return measure(bench, url, theirs, here, arguments)


if __name__ == "__main__":
    main()
