"""What the benchmarks share: hardware, turns, peak memory, a table, a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from regrad.models.config import ModelConfig
from regrad.models.precision import processor_name
from regrad.settings import builtin_config, load_settings


def hardware(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    found: dict[str, Any] = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    found["cpu"] = processor_name()
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def model_config(arguments: argparse.Namespace) -> ModelConfig:
    """The model of `--model`; without it, or with `--quick`, the lab's."""
    if arguments.model and not arguments.quick:
        return ModelConfig(path=arguments.model)
    return load_settings(ModelConfig, builtin_config("models/lab.yaml"))


def in_turn(runs: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, taken in turn so that a drift of the machine hits all alike; one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            _wait(device)
            started = time.perf_counter()
            run()
            _wait(device)
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The most that is allocated during `run` beyond what was there before: every allocation is counted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of rows with the same keys."""
    names = list(rows[0])
    texts = [names, *[[_text(row[name]) for name in names] for row in rows]]
    widths = [max(len(line[column]) for line in texts) for column in range(len(names))]
    for line in texts:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(path: str, figures: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """The JSON that every benchmark writes."""
    with open(path, "w") as file:
        json.dump({"figures": dict(figures), "rows": list(rows), "hardware": hardware(device)}, file, indent=1)
