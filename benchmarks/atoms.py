"""Atoms a second: all passages of a batch in one backward pass, against PEFT with one passage at a time.

    python benchmarks/atoms.py --passages 256 --json atoms.json

Both run in this process, in turn, on the same passages of the lab world; the ratio is the number to quote.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable

import torch
from common import in_turn, show, write
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


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.passages, arguments.repeats = 32, 1
    torch.set_num_threads(arguments.threads)
    lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    meta_init, rng, world = random_meta_init(lm, 1.0), random.Random(0), World()
    passages = [passage(person, rng) for person in world.held_out[: arguments.passages]]
    runs: dict[str, Callable[[], object]] = {"PEFT, one by one": peft_one_by_one(meta_init, lm, passages)}
    for tokens in (256, 1024, 2048):
        extractor = AtomExtractor(lm, meta_init, batch_tokens=tokens)
        runs[f"regrad, {tokens} tokens a batch"] = lambda extractor=extractor: extractor.extract(passages)  # type: ignore[misc]
    seconds = in_turn(runs, arguments.repeats, lm.device)
    baseline = seconds["PEFT, one by one"]
    rows = [
        {"way": name, "ms a passage": 1e3 * value / len(passages), "time / PEFT": value / baseline}
        for name, value in seconds.items()
    ]
    show(rows)
    if arguments.json:
        write(arguments.json, {"fastest_over_peft": min(seconds.values()) / baseline}, rows, lm.device)


if __name__ == "__main__":
    main()
