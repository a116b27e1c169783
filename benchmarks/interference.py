"""Why several gradients answer worse than one, and what lessens it: every merge, at every k, on the lab.

    python benchmarks/interference.py --json interference.json     (--quick: under a minute, no number of use)

Two starts are meta-trained in this process with the lab's settings, on questions that rest on 3 and on 5 passages
(`--meta-init LABEL=PATH` takes ready ones instead); 400 people of meta-training are left out, for `--people dev`, on
whom the variants were chosen. Then 400 questions about held-out people, passages by BM25 over their 400 documents,
nothing in the prompt. The gaps are in points of exact match below k=1, with the gold passage among the k.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from common import show, write
from gates import Example, train_gate
from torch import Tensor

from regrad.data.tasks import Task
from regrad.evaluation.metrics import exact_match
from regrad.gradients.extractor import AtomExtractor
from regrad.gradients.merging import MERGES, Merge
from regrad.inference.decoding import GenerationRequest, generate
from regrad.lab.config import LabConfig
from regrad.lab.files import documents, lab_tasks, people_questions
from regrad.lab.wording import ATTRIBUTES
from regrad.lab.world import Person, World
from regrad.meta_init import MetaInit
from regrad.models.loading import load_language_model
from regrad.retrieval.base import open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.settings import builtin_config, load_settings
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.optim import MetaParameters, PlainEngine
from regrad.training.meta.task_plan import TasksInMemory
from regrad.training.meta.trainer import MetaLearner, meta_loop

KS = (3, 5, 10)
LEFT_OUT = 400
TRAINED_ON = (3, 5)
USE_SCORES = ("first", "decayed", "softmax", "relative", "proportional", "gate")
_BATCH = 50


def train(world: World, passages: int, steps: int, records: int) -> MetaInit:
    """The lab's meta-training in this process, on questions that rest on so many passages."""
    places = ["output=unused", f"optimizer.steps={steps}", "strategy.name=graph", "cluster.workers=1"]
    config = load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), places)
    lab = LabConfig(context_passages=passages)
    made = [Task.from_record(r) for r in lab_tasks(world.meta[:-LEFT_OUT], lab, records, seed=11)]
    lm = load_language_model(config.model, "cpu")
    engine = PlainEngine(MetaParameters(lm.subspace, config.inner, config.seed), config.optimizer)
    learner = MetaLearner(lm, engine, config, lm.identity())
    return learner.product(meta_loop(learner, config).run(TasksInMemory.of(config, [made]).steps()))


@dataclass(frozen=True)
class Asked:
    """One question, whom and what it is about, and what BM25 found: (id, score), best first."""

    text: str
    person: Person
    attribute: str
    hits: Sequence[tuple[str, float]]


def ask(people: Sequence[Person], count: int, folder: str) -> list[Asked]:
    """Questions about these people, with what BM25 finds among their documents."""
    build_index(documents(people, 21), f"{folder}/index")
    retriever, by_id = open_retriever(f"{folder}/index"), {person.passage_id: person for person in people}
    questions = people_questions(people, count)
    return [
        Asked(
            item.question,
            by_id[item.passage_id],
            ATTRIBUTES[i % len(ATTRIBUTES)],
            [(hit.passage.id, hit.score) for hit in retriever.search([item.question], max(KS))[0]],
        )
        for i, item in enumerate(questions)
    ]


class Subject:
    """One MetaInit, and every person's step (atom times step sizes)."""

    def __init__(self, meta_init: MetaInit, people: Sequence[Person]) -> None:
        self._meta_init, self._lm = meta_init, load_language_model(meta_init.model, "cpu")
        self.people = {person.passage_id: person for person in people}
        alpha_P = meta_init.subspace.per_tensor(meta_init.step_sizes).float()
        found = AtomExtractor(self._lm, meta_init).extract(documents(people, 21))
        self.steps = {item.passage.id: item.atom * alpha_P for item in found if item.atom is not None}

    def answers(self, asked: Sequence[Asked], merge: Merge, k: int) -> list[str]:
        """Greedy answers, each under the merge of its own k steps."""
        answers: list[str] = []
        for start in range(0, len(asked), _BATCH):
            requests = [self._request(item, merge, k) for item in asked[start : start + _BATCH]]
            answers += [item.text for item in generate(self._lm, requests)]
        return answers

    def _request(self, item: Asked, merge: Merge, k: int) -> GenerationRequest:
        steps_KP = torch.stack([self.steps[passage_id] for passage_id, _ in item.hits[:k]])
        update = self._meta_init.phi0 - merge(steps_KP, [score for _, score in item.hits[:k]])
        prompt = self._lm.config.prompts.prompt(item.text)
        updates = self._lm.subspace.updates(update, self._meta_init.acts_on)
        return GenerationRequest(prompt, updates, max_new_tokens=4)


def gates(meta_init: MetaInit, people: Sequence[Person], count: int) -> dict[str, Merge]:
    """Learned merges, from questions about people who are neither trained on nor asked about, at the largest k."""
    subject = Subject(meta_init, people)
    with tempfile.TemporaryDirectory() as folder:
        asked = ask(people, count, folder)
    examples: list[Example] = []
    for item in asked:
        names = [passage_id for passage_id, _ in item.hits]
        if item.person.passage_id in names:
            steps_KP = torch.stack([subject.steps[name] for name in names])
            examples.append((steps_KP, [score for _, score in item.hits], names.index(item.person.passage_id)))
    return {"gate": train_gate(examples, True), "gate, no scores": train_gate(examples, False)}


def row(subject: Subject, asked: Sequence[Asked], name: str, merge: Merge, k: int) -> dict[str, Any]:
    """Exact match of one cell, and where its wrong answers come from."""
    answers = subject.answers(asked, merge, k)
    right = [
        exact_match(answer, [item.person.values[item.attribute]]) for answer, item in zip(answers, asked, strict=True)
    ]
    sources = Counter(
        source(item, [subject.people[passage_id] for passage_id, _ in item.hits[1:k]], answer)
        for answer, item, ok in zip(answers, asked, right, strict=True)
        if not ok
    )
    counts = {label: sources[label] for label in SOURCES}
    return {"merge": name, "k": k, "em": sum(right) / len(right), **counts}


SOURCES = ("namesake's", "stranger's", "of another attribute", "of nobody here")


def source(item: Asked, others: Sequence[Person], answer: str) -> str:
    """Whose value a wrong answer is: that of a distractor with a common name piece, of another distractor, or none."""
    owners = [person for person in others if person.values[item.attribute] == answer]
    pieces = set(item.person.name.split())
    if owners:
        return "namesake's" if any(pieces & set(person.name.split()) for person in owners) else "stranger's"
    known = any(answer in person.values.values() for person in (item.person, *others))
    return "of another attribute" if known else "of nobody here"


def cosines(subject: Subject) -> dict[str, float]:
    """The mean cosine of two people's steps: with a common first name, a common last name, and neither."""
    names = [subject.people[passage_id].name.split() for passage_id in subject.steps]
    unit_NP = torch.nn.functional.normalize(torch.stack(list(subject.steps.values())), dim=1)
    table_NN = unit_NP @ unit_NP.T
    values: dict[str, list[float]] = {"first name": [], "last name": [], "neither": []}
    for i, j in combinations(range(len(names)), 2):
        same = [a == b for a, b in zip(names[i], names[j], strict=True)]
        label = "first name" if same[0] else "last name" if same[1] else "neither"
        values[label].append(float(table_NN[i, j]))
    return {f"cosine, {label}": sum(found) / max(1, len(found)) for label, found in values.items()}


def measure(label: str, subject: Subject, asked: Sequence[Asked], merges: dict[str, Merge]) -> Iterator[dict[str, Any]]:
    """All cells of one start."""
    cells: list[tuple[str, Callable[[Tensor, Sequence[float]], Tensor], int]] = [("sum", MERGES["sum"], 1)]
    cells += [(name, merge, k) for name, merge in merges.items() for k in KS]
    for name, merge, k in cells:
        yield {"start": label, **row(subject, asked, name, merge, k)}


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Points between k=1 and k: of the best variant, of the best that looks at no score, and of the paper's sum.

    A variant is a start with a merge, the same for all k: the one with the smallest gaps together.
    """
    alone = {r["start"]: r["em"] for r in rows if r["k"] == 1}
    gaps = {(r["start"], r["merge"], r["k"]): 100 * (alone[r["start"]] - r["em"]) for r in rows if r["k"] > 1}
    variants = sorted({key[:2] for key in gaps})
    groups = {
        "": variants,
        "_without_scores": [v for v in variants if v[1] not in USE_SCORES],
        "_sum": [v for v in variants if v[1] == "sum"][:1],
    }
    found = {}
    for suffix, group in groups.items():
        best = min(group, key=lambda v: sum(gaps[*v, k] for k in KS[:2]))
        found |= {f"k{k}_gap{suffix}": gaps[*best, k] for k in KS}
        print(f"variant{suffix or ', best'}: questions on {best[0]}, merge {best[1]}")
    return found


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--people", choices=("dev", "held-out"), default="held-out")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--merges", nargs="*", default=list(MERGES), choices=list(MERGES))
    parser.add_argument("--gates", action="store_true", help="also two learned merges, trained on the people left out")
    parser.add_argument("--meta-init", action="append", default=[], metavar="LABEL=PATH")
    arguments = parser.parse_args()
    if arguments.gates and arguments.people == "dev":
        parser.error("--gates are trained on the people of --people dev: ask about the others")
    torch.set_num_threads(1)
    world, rows = World(), []
    people = world.held_out if arguments.people == "held-out" else world.meta[-LEFT_OUT:]
    merges = {name: MERGES[name] for name in (("sum", "relative") if arguments.quick else arguments.merges)}
    ready = dict(item.split("=", 1) for item in arguments.meta_init)
    with tempfile.TemporaryDirectory() as folder:
        asked = ask(people, 20 if arguments.quick else arguments.questions, folder)
    gold = sum(item.hits[0][0] == item.person.passage_id for item in asked) / len(asked)
    print(f"{len(asked)} questions; BM25's first passage is the right one for {gold:.4f} of them")
    for label in ready or [f"{passages} passages" for passages in TRAINED_ON]:
        size = (10, 30) if arguments.quick else (1000, 4000)
        meta_init = MetaInit.load(ready[label]) if ready else train(world, int(label[0]), *size)
        subject = Subject(meta_init, people)
        print(label, {name: round(value, 4) for name, value in cosines(subject).items()}, flush=True)
        learned = gates(meta_init, world.meta[-LEFT_OUT:], 200) if arguments.gates else {}
        for line in measure(label, subject, asked, merges | learned):
            rows.append(line)
            print(line, flush=True)
    show(rows)
    found = figures(rows)
    show([found])
    if arguments.json:
        write(arguments.json, found, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
