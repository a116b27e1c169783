"""Processor time of the decoding engine's steps with each choice of its kernels, on a real model or the lab's.

    python benchmarks/engine_step.py --model smollm2-135m --json engine_step.json        (--quick: the lab's model)

For every choice there is an engine with the same requests, each with an update of its own, and all engines make their
first step, then all their second, in an order that changes with every step: so what else the machine does hits all
alike. A ratio is the median over steps of one engine's time over that of the model's own kernels in the same step; its
quartiles stand beside it. The first step reads the prompts. `same tokens` counts the requests whose tokens are those of
the model's own kernels.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Mapping, Sequence
from time import process_time
from typing import Any

import torch
from common import model_config, show, write

from regrad.inference.engine import Engine
from regrad.inference.kernels import Kernels
from regrad.inference.rows import DecodingRequest, Row
from regrad.lab.world import World, passage
from regrad.models.loading import LanguageModel, load_language_model

OWN = "own"


def choices(lm: LanguageModel) -> dict[str, Kernels]:
    """The model's own kernels first, then each of the engine's alone, then both."""
    return {
        OWN: Kernels(lm),
        "attention": Kernels(lm, attention=True),
        "products": Kernels(lm, products=True),
        "both": Kernels(lm, attention=True, products=True),
    }


def requests(
    lm: LanguageModel, count: int, prompt_tokens: int, new_tokens: int, updates: bool
) -> list[DecodingRequest]:
    """Prompts of about so many tokens of the lab's passages, and random updates that change the answers."""
    people, subspace, found = World().held_out, lm.subspace, []
    for number in range(count):
        rng, generator = random.Random(number), torch.Generator().manual_seed(number)
        text = ""
        while len(lm.encode(text)) < prompt_tokens:
            text += passage(rng.choice(people), rng).text + " "
        cut = str(lm.tokenizer.decode(lm.encode(text)[:prompt_tokens]))
        vector = subspace.initial(number) + 1e-3 * torch.randn(subspace.size, generator=generator)
        asked = subspace.updates(vector if updates else None)
        found.append(DecodingRequest(cut, asked, new_tokens, stop=(), raw=True))
    return found


def in_step(
    lm: LanguageModel, kernels: Mapping[str, Kernels], asked: Sequence[DecodingRequest]
) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    """Seconds of each step and each request's tokens, for all engines, which go step by step together."""
    engines = {name: Engine(lm, max_rows=len(asked), kernels=each) for name, each in kernels.items()}
    rows: dict[str, list[Row]] = {}
    for name, engine in engines.items():
        rows[name] = [engine.submit(request, lambda _: None) for request in asked]
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    names, going = list(engines), True
    while going:
        names.append(names.pop(0))
        for name in names:
            started = process_time()
            going = engines[name].step()
            if going:
                seconds[name].append(process_time() - started)
    for engine in engines.values():
        engine.close()
    return seconds, {name: [row.written for row in each] for name, each in rows.items()}


def table(
    workload: Mapping[str, Any], seconds: Mapping[str, list[float]], tokens: Mapping[str, list[list[int]]]
) -> list[dict[str, Any]]:
    """One row a choice; the first step, which also makes room for everything, apart from the others."""
    found = []
    for name, times in seconds.items():
        ratios = [time / own for time, own in zip(times[1:], seconds[OWN][1:], strict=True)]
        lower, median, upper = statistics.quantiles(ratios, n=4)
        found.append(
            {
                **workload,
                "kernels": name,
                "first step ms": 1e3 * times[0],
                "over own": times[0] / seconds[OWN][0],
                "step ms": 1e3 * statistics.median(times[1:]),
                "step over own": median,
                "quartiles": f"{lower:.2f} {upper:.2f}",
                "tokens a second": sum(map(len, tokens[name])) / sum(times),
                "same tokens": f"{sum(map(list.__eq__, tokens[name], tokens[OWN]))}/{len(tokens[name])}",
            }
        )
    return found


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="as `model.path`; without it the lab's")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16], help="decoded together")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--attention", default="eager", choices=("eager", "sdpa"), help="the model's own")
    parser.add_argument("--base", action="store_true", help="without updates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="the lab's model and short prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    config = model_config(arguments)
    lm = load_language_model(config.model_copy(update={"attention": arguments.attention}), device)
    lm.end_ids = ()  # every answer has the same number of tokens
    rows: list[dict[str, Any]] = []
    for prompt_tokens in arguments.prompt_tokens[: 1 if arguments.quick else None]:
        for count in arguments.requests:
            asked = requests(lm, count, prompt_tokens, arguments.new_tokens, not arguments.base)
            workload = {"requests": count, "prompt tokens": prompt_tokens}
            rows += table(workload, *in_step(lm, choices(lm), asked))
    show(rows)
    both = {
        f"step_over_own_{r['requests']}_{r['prompt tokens']}": r["step over own"]
        for r in rows
        if r["kernels"] == "both"
    }
    if arguments.json:
        write(arguments.json, both, rows, device)


if __name__ == "__main__":
    main()
