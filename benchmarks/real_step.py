"""What a task of meta-training costs on a real model: processor time and page faults.

    python benchmarks/real_step.py --model models/smollm2-135m --json real_step.json
    python benchmarks/real_step.py --model models/smollm2-135m --trend 128      (and with LD_PRELOAD=.../libjemalloc.so)
    python benchmarks/real_step.py --model models/smollm2-135m --in-prompt --json real_step_in_prompt.json

A task is one passage of 60 to 300 tokens and four short questions; tokens are random, as time does not
depend on which they are. Strategy `graph`, bf16 where the processor has it, one thread. The ways are taken in turn: as
it is; without the bf16 copies of the frozen weights, which autocast then casts in every pass; with the logits of all
tokens at once, as autograd keeps them; and without either. `--trend` runs that many tasks of other
lengths each time instead, and says what one takes in each sixteenth of them: with some allocators it grows.
`--in-prompt` takes tasks whose four questions have the passage in their prompts (ReGrad + ICL), and steps of
`regrad finetune` on 8 examples of four such questions, with the questions of a task in one row and in four, in turn.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from common import show, write

from regrad.models.batching import pad_batch
from regrad.models.config import ModelConfig, SubspaceConfig
from regrad.models.half_weights import HalfWeights, autocast
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.packing import group_batch
from regrad.models.precision import bf16_here
from regrad.models.token_losses import _Head
from regrad.training.lora.batched import RowTrainer
from regrad.training.lora.config import FinetuneOptimizerConfig
from regrad.training.lora.examples import Example
from regrad.training.meta.collate import MetaBatch
from regrad.training.meta.config import InnerConfig, StrategyConfig
from regrad.training.meta.objective import Point
from regrad.training.meta.strategies import Strategy, make_strategy

SYSTEM, PASSAGE, TOGETHER = 15, 160, 8
PASSAGES = (60, 90, 120, 150, 180, 220, 260, 300)
QUESTIONS, QUESTION, ANSWER = 4, 24, 4
NOW, NO_COPIES, ALL_LOGITS, NEITHER = "as it is", "no bf16 copies", "all logits at once", "neither"
ONE_ROW, FOUR_ROWS = "in one row", "in a row each"


@dataclass(frozen=True)
class Cost:
    """Of one task, on average."""

    seconds: float
    faults: float


@contextmanager
def as_before(copies: bool, chunks: bool) -> Iterator[None]:
    """Inside the block, training does without the bf16 copies, or without a few tokens' logits at a time."""
    with ExitStack() as stack:
        if not copies:
            stack.enter_context(patch.object(HalfWeights, "applied", lambda self: nullcontext()))
        if not chunks:
            stack.enter_context(patch.object(_Head, "of", staticmethod(lambda lm: None)))
        yield


WAYS = {NOW: (True, True), NO_COPIES: (False, True), ALL_LOGITS: (True, False), NEITHER: (False, False)}


def random_tasks(lm: LanguageModel, lengths: Sequence[int]) -> list[MetaBatch]:
    """A batch of one task for each length of a passage."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, lm.vocabulary_size, (count,), generator=generator).tolist()

    asked = [QUESTION - ANSWER] * QUESTIONS
    return [_task(lm, tokens(length), [(tokens(QUESTION), start) for start in asked]) for length in lengths]


def in_prompt(lm: LanguageModel, repeats: int) -> list[dict[str, Any]]:
    """A row for each step, in one row a task and in one a question; the first repeat is not counted."""
    at, half = _start(lm), bf16_here(lm.device).faster
    strategy, apart = make_strategy(StrategyConfig(name="graph"), InnerConfig()), replace(lm, packs=False)
    groups = [_begun_alike(lm, seed) for seed in range(TOGETHER)]
    examples = [Example(*first, others=tuple(Example(*one) for one in others)) for first, *others in groups]
    costs: dict[tuple[str, str], list[float]] = {}
    for repeat in range(repeats + 1):
        for way, model in ((ONE_ROW, lm), (FOUR_ROWS, apart)):
            tasks = [_task(model, group[0][0][SYSTEM : SYSTEM + PASSAGE], group) for group in groups[:2]]
            trainer = RowTrainer(model, at.phi0[None], FinetuneOptimizerConfig())
            trainer.half = half
            started = time.process_time()
            trainer.step([examples])
            tuned = (time.process_time() - started) / TOGETHER
            for step, seconds in (("train", cost(model, at, tasks, strategy, half).seconds), ("finetune", tuned)):
                costs.setdefault((step, way), []).extend([seconds] * bool(repeat))
    middle = {key: statistics.median(found) for key, found in costs.items()}
    return [
        {
            "step of": f"regrad {step}",
            "questions": way,
            "precision": "bf16" if half else "float32",
            "CPU s a task": seconds,
            "ratio": seconds / middle[step, FOUR_ROWS],
        }
        for (step, way), seconds in middle.items()
    ]


def _begun_alike(lm: LanguageModel, seed: int) -> list[tuple[tuple[int, ...], int]]:
    """The questions of a task: system text and passage, alike in all, then what a question has in other tasks."""
    generator = torch.Generator().manual_seed(seed)
    common, *own = (
        torch.randint(3, lm.vocabulary_size, (count,), generator=generator).tolist()
        for count in (SYSTEM + PASSAGE, *[QUESTION] * QUESTIONS)
    )
    return [((*common, *rest), len(common) + QUESTION - ANSWER) for rest in own]


def _task(lm: LanguageModel, passage: Sequence[int], questions: Sequence[tuple[Sequence[int], int]]) -> MetaBatch:
    return MetaBatch(
        pad_batch([passage], [1], lm.pad_id, lm.device),
        torch.ones(1, 1),
        group_batch(lm, [questions]),
        torch.full((len(questions),), 1 / len(questions)),
    )


def cost(lm: LanguageModel, at: Point, tasks: Sequence[MetaBatch], strategy: Strategy, half: bool) -> Cost:
    """Of one pass over the tasks."""
    faults, started = _faults(), time.process_time()
    for task in tasks:
        with autocast(lm, half):
            strategy(lm, at, task)
    return Cost((time.process_time() - started) / len(tasks), (_faults() - faults) / len(tasks))


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(lm: LanguageModel, repeats: int) -> list[dict[str, Any]]:
    """A row for every way."""
    at, half = _start(lm), bf16_here(lm.device).faster
    tasks, strategy = random_tasks(lm, PASSAGES), make_strategy(StrategyConfig(name="graph"), InnerConfig())
    costs: dict[str, list[Cost]] = {way: [] for way in WAYS}
    for repeat in range(repeats + 1):
        for way, (copies, chunks) in WAYS.items():
            with as_before(copies, chunks):
                found = cost(lm, at, tasks, strategy, half)
            if repeat:
                costs[way].append(found)
    seconds = {way: statistics.median(one.seconds for one in found) for way, found in costs.items()}
    return [
        {
            "way": way,
            "precision": "bf16" if half else "float32",
            "CPU s a task": seconds[way],
            "ratio": seconds[way] / seconds[NEITHER],
            "page faults a task": statistics.median(one.faults for one in found),
        }
        for way, found in costs.items()
    ]


def trend(lm: LanguageModel, count: int) -> list[dict[str, Any]]:
    """A row for each sixteenth of the tasks."""
    at, half = _start(lm), bf16_here(lm.device).faster
    lengths = torch.randint(PASSAGES[0], PASSAGES[-1], (count,), generator=torch.Generator().manual_seed(1)).tolist()
    tasks, strategy = random_tasks(lm, lengths), make_strategy(StrategyConfig(name="graph"), InnerConfig())
    size, rows = max(1, count // 16), []
    for first in range(0, count, size):
        found = cost(lm, at, tasks[first : first + size], strategy, half)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        rows.append(
            {"tasks": first + size, "CPU s a task": found.seconds, "page faults": found.faults, "peak GB": peak}
        )
    return rows


def _start(lm: LanguageModel) -> Point:
    phi0 = lm.subspace.initial(0)
    return Point(phi0, torch.full_like(phi0, 10.0))


def main() -> None:
    """Print the table; write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="PATH")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trend", type=int, default=0, metavar="TASKS")
    parser.add_argument("--in-prompt", action="store_true")
    parser.add_argument("--json", default="", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = ModelConfig(path=arguments.model, subspace=SubspaceConfig(rank=16, alpha=32))
    lm = load_language_model(config, "cpu")
    if arguments.in_prompt:
        rows = in_prompt(lm, arguments.repeats)
    else:
        rows = trend(lm, arguments.trend) if arguments.trend else measure(lm, arguments.repeats)
    show(rows)
    if arguments.in_prompt:
        figures = {f"{row['step of'].split()[1]}_ratio": row["ratio"] for row in rows if row["questions"] == ONE_ROW}
    elif arguments.trend:
        figures = {"last_over_first": rows[-1]["CPU s a task"] / rows[0]["CPU s a task"]}
    else:
        figures = {"seconds_a_task": rows[0]["CPU s a task"], "time_over_neither": rows[0]["ratio"]}
    if arguments.json:
        write(arguments.json, figures, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
