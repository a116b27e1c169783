"""Atoms a second: all passages of a batch in one backward pass, against PEFT with one passage at a time.

    python benchmarks/atoms.py --passages 256 --out atoms.json

Both run in this process, in turn, on the same passages of the lab world; the ratio is the number to quote.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from regrad.atoms.extractor import AtomExtractor
from regrad.atoms.gradients import encode_passage
from regrad.config import ModelConfig, builtin_config
from regrad.corpus import Passage
from regrad.lab.world import World, passage
from regrad.language_model.loading import LanguageModel, load_language_model, resolve_path
from regrad.meta_init import MetaInit, random_meta_init
from regrad.settings import load_settings


def peft_one_by_one(meta_init: MetaInit, lm: LanguageModel, passages: list[Passage]) -> Callable[[], None]:
    """Plain PEFT: a forward and a backward for each passage."""
    base = AutoModelForCausalLM.from_pretrained(resolve_path(meta_init.model.path), attn_implementation="eager")
    with tempfile.TemporaryDirectory() as folder:
        meta_init.save(folder)
        model = PeftModel.from_pretrained(base, folder, is_trainable=True).eval()
    encoded = [torch.tensor([encode_passage(lm, item)]) for item in passages]

    def run() -> None:
        for ids in encoded:
            model.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()

    return run


def measure(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turn so that a drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    meta_init, rng, world = random_meta_init(lm, 1.0), random.Random(0), World()
    passages = [passage(person, rng) for person in world.held_out[: arguments.passages]]
    runs: dict[str, Callable[[], object]] = {"PEFT, one by one": peft_one_by_one(meta_init, lm, passages)}
    for tokens in (256, 1024, 2048):
        extractor = AtomExtractor(lm, meta_init, batch_tokens=tokens)
        runs[f"regrad, {tokens} tokens a batch"] = lambda extractor=extractor: extractor.extract(passages)  # type: ignore[misc]
    seconds = measure(runs, arguments.repeats)
    baseline = seconds["PEFT, one by one"]
    print(f"{'':32}{'ms a passage':>14}{'time / PEFT':>14}")
    for name, value in seconds.items():
        print(f"{name:32}{1e3 * value / len(passages):14.2f}{value / baseline:14.2f}")
    if arguments.out:
        result = {"passages": len(passages), "threads": arguments.threads, "seconds": seconds}
        with open(arguments.out, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
