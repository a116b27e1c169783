"""Synthetic supervision on the lab: meta-training on questions that a model wrote, against the lab's own questions.

    python benchmarks/synthesis.py --json synthesis.json   # about half an hour on one core
    python benchmarks/synthesis.py --quick                 # under a minute, to see that it runs; no number of use

Documents of people of the meta-training split come without their questions; a writer (the lab's base, taught for so
many steps to write questions) makes them, and `regrad train` trains on them. The world knows every fact about these
people, so it can say how many of the written pairs are true. The held-out people are the demo's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import write
from torch import Tensor

from regrad.data.corpora import read_passages
from regrad.evaluation.metrics import exact_match
from regrad.gradients.extractor import AtomExtractor
from regrad.inference.decoding import GenerationRequest, generate
from regrad.lab.config import LabConfig, LabWriterConfig
from regrad.lab.files import held_out_corpus, held_out_questions, lab_tasks, write_lab
from regrad.lab.question_writer import make_writer
from regrad.lab.wording import QUESTIONS
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.models.loading import load_language_model
from regrad.retrieval.base import Retriever, open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.settings import builtin_config, load_settings
from regrad.training.synthesis.config import SynthesisConfig
from regrad.training.synthesis.tasks import make_tasks, select_pairs, synthesis_report
from regrad.training.synthesis.writer import Draft, PairWriter

# `trained` picks among the sets of questions: each writer's with and without an index, then the lab's own two.
FULL = {"documents": 1000, "writers": (200, 60), "steps": 850, "questions": 400, "trained": (0, 4, 2, 3, 5)}
QUICK = {"documents": 32, "writers": (30,), "steps": 4, "questions": 20, "trained": (0,)}
KS = (1, 3)


class Truth:
    """What the world knows about the people: every wording of every question, and its answer."""

    def __init__(self, world: World) -> None:
        self._facts = {
            (person.passage_id, wording.format(name=person.name)): person.values[attribute]
            for person in world.meta
            for attribute, wordings in QUESTIONS.items()
            for wording in wordings
        }

    def share(self, drafts: Sequence[Draft], written: bool = False) -> float:
        """The share of pairs, kept or all that were written, that state a fact about their passage's person."""
        pairs = [(d, item) for d in drafts for item in (*d.pairs, *(d.rejected if written else ())) if item.question]
        true = [self._facts.get((draft.passage.id, item.question)) == item.answer for draft, item in pairs]
        return sum(true) / max(1, len(true))


class HeldOut:
    """The demo's questions about people whom no stage has seen, with what BM25 finds for them."""

    def __init__(self, folder: Path, world: World, questions: int) -> None:
        self._corpus = held_out_corpus(world)
        self._questions = held_out_questions(world, questions)
        build_index(self._corpus, f"{folder}/held-out-index")
        retriever = open_retriever(f"{folder}/held-out-index")
        self._found = [[hit.passage.id for hit in retriever.search([q.question], max(KS))[0]] for q in self._questions]

    def scores(self, meta_init: MetaInit, stored: Callable[[Tensor], Tensor] = lambda atoms: atoms) -> dict[str, float]:
        """Exact match at each k, nothing in the prompt, with what `stored` makes of the atoms [n, P]."""
        lm = load_language_model(meta_init.model, "cpu")
        extracted = [item.atom for item in AtomExtractor(lm, meta_init).extract(self._corpus)]
        values = stored(torch.stack([atom for atom in extracted if atom is not None]))
        atoms = {item.id: atom for item, atom in zip(self._corpus, values, strict=True)}
        return {f"regrad_k{k}": self._score(lm, meta_init, atoms, k) for k in KS}

    def _score(self, lm: Any, meta_init: MetaInit, atoms: dict[str, Any], k: int) -> float:
        hits = 0
        for start in range(0, len(self._questions), 32):
            found, asked = self._found[start : start + 32], self._questions[start : start + 32]
            vectors = [meta_init.update(torch.stack([atoms[i] for i in ids[:k]]).sum(0)) for ids in found]
            updates = [lm.subspace.updates(vector, meta_init.acts_on) for vector in vectors]
            prompts = [lm.config.prompts.prompt(item.question) for item in asked]
            requests = [GenerationRequest(*both) for both in zip(prompts, updates, strict=True)]
            answers = generate(lm, requests)
            hits += sum(exact_match(a.text, item.answers) for a, item in zip(answers, asked, strict=True))
        return hits / len(self._questions)


def synthetic(folder: Path, writer: int, index: Retriever, truth: Truth) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What `regrad synth` does, in this process: a writer's tasks with and without an index, from the same drafts."""
    name = f"writer of {writer} steps"
    places = [f"output={folder}/writer-{writer}", f"steps={writer}"]
    print(make_writer(load_settings(LabWriterConfig, builtin_config("jobs/lab-writer.yaml"), places)))
    config = load_settings(
        SynthesisConfig, builtin_config("jobs/synth-lab.yaml"), [f"model.path={folder}/writer-{writer}"]
    )
    started = time.monotonic()
    drafts = PairWriter(load_language_model(config.model, "cpu"), config).write(
        list(read_passages(f"{folder}/lab/documents.jsonl"))
    )
    seconds = time.monotonic() - started
    questions = [pair.question for draft in drafts for pair in draft.pairs]
    found = {question: [hit.passage.id for hit in index.search(question, config.near_hits)] for question in questions}
    for label, hits in (("-index", found), ("", None)):
        settled = select_pairs(drafts, config, hits)
        path, records = folder / f"synthetic-{writer}{label}.jsonl", list(make_tasks(settled, config, hits))
        write_jsonl(path, records)
        shares = {"true_written": truth.share(settled, written=True), "true_kept": truth.share(settled)}
        yield name + label.replace("-", ", "), str(path), {**synthesis_report(settled, len(records), seconds), **shares}


def own(folder: Path, world: World, people: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The lab's own tasks: of the people of the documents, and of all people."""
    same = folder / "own.jsonl"
    write_jsonl(same, list(lab_tasks(world.meta[:-100][:people], LabConfig(), LabConfig().task_records, seed=11)))
    yield f"the lab's own, the same {people} people", str(same), {}
    yield f"the lab's own, all {len(world.meta) - 100} people", f"{folder}/lab/tasks.jsonl", {}


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    """One record a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def train(path: str, steps: int) -> MetaInit:
    """`regrad train` with the lab's settings on other tasks, one worker."""
    output = path.removesuffix(".jsonl") + "-meta-init"
    settings = [f"tasks={path}", "dev=null", f"output={output}", f"optimizer.steps={steps}", "cluster.workers=1"]
    options = [part for setting in settings for part in ("--set", setting)]
    subprocess.run([sys.executable, "-m", "regrad.cli.main", "train", *options], check=True)
    return MetaInit.load(output)


def rows(folder: Path, size: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a training set: each writer's questions with and without an index, and the lab's own questions."""
    world = World()
    truth, held_out = Truth(world), HeldOut(folder, world, size["questions"])
    write_lab(LabConfig(output=f"{folder}/lab", documents=size["documents"]))
    build_index(read_passages(f"{folder}/lab/documents.jsonl"), f"{folder}/index")
    index = open_retriever(f"{folder}/index")
    sets = [item for writer in size["writers"] for item in synthetic(folder, writer, index, truth)]
    sets += own(folder, world, size["documents"])
    for name, path, row in [sets[i] for i in size["trained"]]:
        yield {"questions": name, **row, **held_out.scores(train(path, size["steps"]))}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder), QUICK if arguments.quick else FULL):
            measured.append(row)
            print(json.dumps(row), flush=True)
    print_table(measured)
    if arguments.json:
        write(arguments.json, figures(measured), measured, torch.device("cpu"))


def print_table(measured: list[dict[str, Any]]) -> None:
    """The table of docs/benchmarks.md."""
    print("| questions | kept | true of those written | true of those kept | k=1 | k=3 |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in measured:
        written, kept = (f"{row[key]:.3f}" if key in row else "" for key in ("true_written", "true_kept"))
        scores = " | ".join(f"{row[f'regrad_k{k}']:.4f}" for k in KS)
        print(f"| {row['questions']} | {row.get('kept', '')} | {written} | {kept} | {scores} |")


def figures(measured: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers to quote, by name."""
    quoted = ("kept", "true_written", "true_kept", "regrad_k1", "regrad_k3")
    return {f"{row['questions']}: {key}": row[key] for row in measured for key in quoted if key in row}


if __name__ == "__main__":
    main()
