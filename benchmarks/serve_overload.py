"""A server on the lab with five times as many requests as it can answer: what it says, what it holds, how it recovers.

    python benchmarks/serve_overload.py --json serve_overload.json      (--quick: 10 s of overload instead of 60)

What it can answer is measured first, with 32 users. Then requests come at random at five times that rate, whatever
becomes of them, while one more user asks one question after the other; when no more requests come, that user goes on
asking. The server has recovered with the last of the first five answers in a row whose median time is at most 1.5 times
what it was before. Memory is that of all processes of the server and of its Ray, before the overload and at its end:
RSS counts pages that several share, as those of Ray's object store, once for each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psutil
import torch
from common import show, write
from serving.lab import Lab, lab

from ray_jobs.cluster import cluster
from regrad.planning.users import RequestOutcome, Traffic, run
from serve_app.app import anywhere, serving

_TIMES, _USERS = 5.0, 32
_IN_A_ROW, _SLOWER = 5, 1.5
_START_SECONDS = 3.0
_RIGHT = (200, 429)


def overload(url: str, world: Lab, arguments: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The numbers to quote, and a row for each few seconds."""
    bodies, seconds = world.bodies(), arguments.seconds
    capacity, usual = _capacity(url, bodies, arguments.measured)
    run(Traffic(url, bodies, 3.0, rate=_TIMES * capacity))  # what is made once, and kept, is made now
    time.sleep(3.0)
    start_at = time.time() + _START_SECONDS
    with ThreadPoolExecutor(2) as threads:
        flood = threads.submit(run, Traffic(url, bodies, seconds, rate=_TIMES * capacity, seed=1, start_at=start_at))
        asking = Traffic(url, bodies, seconds + arguments.after, users=1, start_at=start_at)
        probe = threads.submit(run, asking)
        memory = _memory(probe, start_at)
    found = flood.result()
    statuses = Counter(item.status for item in found)
    at_end, before = min(memory, key=lambda sample: abs(sample[0] - seconds)), memory[0]
    figures = {
        "capacity": capacity,
        "overload_requests": len(found),
        "overload_answered": statuses[200],
        "overload_refused": statuses[429],
        "overload_bad_statuses": sum(count for status, count in statuses.items() if status not in _RIGHT),
        "overload_statuses": " ".join(f"{status}:{count}" for status, count in sorted(statuses.items())),
        "overload_rss_growth": at_end[1] / before[1] - 1,
        "overload_unshared_growth": at_end[2] / before[2] - 1,
        "usual_p50_ms": 1e3 * usual,
        "recovery_seconds": recovery(probe.result(), seconds, usual),
    }
    return figures, _rows(found, probe.result(), memory, arguments.every)


def _capacity(url: str, bodies: Sequence[dict[str, Any]], seconds: float) -> tuple[float, float]:
    """Answers a second with many users, and the median seconds of one answer with one user."""
    run(Traffic(url, bodies, seconds, users=_USERS))
    answered = [item for item in run(Traffic(url, bodies, seconds, users=_USERS)) if item.status == 200]
    alone = [item.seconds for item in run(Traffic(url, bodies, seconds, users=1)) if item.status == 200]
    return len(answered) / max(item.due + item.seconds for item in answered), statistics.median(alone)


def _memory(probe: Future[Any], start_at: float) -> list[tuple[float, int, int]]:
    """Seconds since the start of the overload, and bytes, until the probe has ended."""
    samples = []
    while not probe.done():
        samples.append((time.time() - start_at, *_resident_bytes()))
        time.sleep(1.0)
    return samples


def _resident_bytes() -> tuple[int, int]:
    """Memory of all processes that this one started: pages shared by several counted for each, and not counted."""
    held = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            held.append(child.memory_info())
    return sum(item.rss for item in held), sum(item.rss - item.shared for item in held)


def recovery(probe: Sequence[RequestOutcome], ended: float, usual: float) -> float | None:
    """Seconds from the end of the overload until five answers in a row were about as fast as usual; None: never."""
    later = [item for item in probe if item.due + item.seconds >= ended]
    for start in range(len(later) - _IN_A_ROW + 1):
        five = later[start : start + _IN_A_ROW]
        fine = all(item.status == 200 for item in five)
        if fine and statistics.median(item.seconds for item in five) <= _SLOWER * usual:
            return five[-1].due + five[-1].seconds - ended
    return None


def _rows(
    found: Sequence[RequestOutcome],
    probe: Sequence[RequestOutcome],
    memory: Sequence[tuple[float, int, int]],
    every: float,
) -> list[dict[str, Any]]:
    rows = []
    for number in range(int(memory[-1][0] / every) + 1):
        here = [item for item in found if int(item.due / every) == number]
        asked = [item.seconds for item in probe if int(item.due / every) == number and item.status == 200]
        held = [sample[1:] for sample in memory if int(sample[0] / every) == number and sample[0] >= 0]
        times = [item.seconds for item in here if item.status == 200]
        rows.append(
            {
                "from s": number * every,
                "requests": len(here),
                "answered": len(times),
                "refused": sum(item.status == 429 for item in here),
                "other": sum(item.status not in _RIGHT for item in here),
                "p50 ms of answers": 1e3 * statistics.median(times) if times else 0.0,
                "p50 ms of the one user": 1e3 * statistics.median(asked) if asked else 0.0,
                "RSS MB": held[-1][0] / 1e6 if held else 0.0,
                "not shared MB": held[-1][1] / 1e6 if held else 0.0,
            }
        )
    return rows


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta-init", default="", metavar="PATH", help="a lab MetaInit, instead of an untrained one")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--after", type=float, default=30.0, help="seconds to watch the recovery")
    parser.add_argument("--measured", type=float, default=6.0, help="seconds to measure what the server can do")
    parser.add_argument("--every", type=float, default=5.0, help="seconds of a row")
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.after, arguments.measured = 10.0, 15.0, 2.0
    torch.set_num_threads(1)
    with lab(arguments.meta_init) as world, cluster(), serving(world.config(), anywhere()) as url:
        figures, rows = overload(url, world, arguments)
    show(rows)
    show([{"figure": name, "value": "never" if value is None else value} for name, value in figures.items()])
    if arguments.json:
        write(arguments.json, figures, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
