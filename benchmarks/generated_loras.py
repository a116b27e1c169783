"""DyPRAG's LoRAs fetched from a bank beside the same ones generated for the question: what a question's update costs.

    python benchmarks/generated_loras.py --json generated_loras.json

Documents and base are the lab's, the translator is untrained: what it costs does not depend on its numbers. A question
has its own passages, and every round opens the methods anew, so that an atom is read from disk (the page cache).
Milliseconds are of one thread's processor time, medians over questions and rounds; of a plan, before decoding.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import show, write

from regrad.bank.format import Layout
from regrad.bank.writer import BankWriter
from regrad.data.passages import Passage
from regrad.lab.world import World, passage
from regrad.methods.base import Evidence, open_question
from regrad.methods.dyprag import DyPragConfig
from regrad.methods.prag import PragConfig, adapters_layout
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.subspace import Subspace
from regrad.settings import builtin_config, load_settings
from regrad.training.translator.artifact import Translator
from regrad.training.translator.config import PerceptronsConfig
from regrad.training.translator.network import TranslatorNetwork

K, RANK, ALPHA = 3, 2, 4


def documents(count: int) -> list[Passage]:
    """Of as many held-out people."""
    rng = random.Random(0)
    return [passage(person, rng) for person in World().held_out[:count]]


def translator_of(lm: LanguageModel) -> Translator:
    """As large as the lab's."""
    subspace, network = Subspace(lm.subspace.modules, RANK, ALPHA / RANK), PerceptronsConfig(deviation=0.05)
    states, bank = int(lm.text_config.hidden_size), adapters_layout(subspace, lm.identity())
    made = TranslatorNetwork(states, subspace, network)
    return Translator(lm.config, lm.identity(), bank, True, 3000, network, made.requires_grad_(False), states)


def fill(lm: LanguageModel, made: Translator, uri: str, passages: Sequence[Passage]) -> float:
    """A bank of the passages' LoRAs in float32; milliseconds a passage."""
    fingerprint, subspace = adapters_layout(made.subspace, lm.identity()), made.subspace.to_json()
    layout = Layout(kind="adapter", fingerprint=fingerprint, translator=made.digest, codec="float32", subspace=subspace)
    writer, started = BankWriter(uri, layout), time.process_time()
    for item in passages:
        writer.add_atom(item.id, item.text_hash, made.lora_of(lm, item))
    writer.commit()
    return 1e3 * (time.process_time() - started) / len(passages)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="generated_loras.json")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    made, passages = translator_of(lm), documents(K * options.questions)
    with tempfile.TemporaryDirectory() as name:
        place, bank = str(Path(name) / "translator"), str(Path(name) / "bank")
        made.save(place)
        preparation = fill(lm, made, bank, passages)
        methods = {
            "generated": DyPragConfig(name="dyprag", translator=place),
            "stored": DyPragConfig(name="dyprag", translator=place, bank=bank),
            "stored, prag": PragConfig(name="prag", bank=bank),
        }
        took: dict[str, list[float]] = {kind: [] for kind in methods}
        updates: dict[str, list[torch.Tensor]] = {}
        for _ in range(options.repeats):
            for kind, settings in methods.items():
                method = settings.open(lm)
                atoms, updates[kind] = method.open_atoms(), []
                for start in range(0, len(passages), K):
                    asked = Evidence(open_question("Who?"), tuple(passages[start : start + K]))
                    started = time.process_time()
                    (plan,) = method.plan([asked], atoms)
                    took[kind].append(1e3 * (time.process_time() - started))
                    updates[kind].append(plan.updates[0].vector)
    rows: list[dict[str, Any]] = [{"update": kind, "ms": statistics.median(each)} for kind, each in took.items()]
    figures = {
        "stored_over_generated": rows[1]["ms"] / rows[0]["ms"],
        "bytes_a_passage": 4 * made.subspace.size,
        "preparation_ms": preparation,
        "largest_difference": max(
            float((one - other).abs().max())
            for kind in ("stored", "stored, prag")
            for one, other in zip(updates[kind], updates["generated"], strict=True)
        ),
    }
    write(options.json, figures, rows, lm.device)
    show([*rows, *({"update": key, "ms": value} for key, value in figures.items())])


if __name__ == "__main__":
    main()
