"""The harder labs: direct, RAG and ReGrad on each, with one MetaInit that was trained on the lab itself.

    python benchmarks/hard_labs.py --meta-init runs/lab/meta-init --json hard_labs.json
    python benchmarks/hard_labs.py --quick             # under a minute, an untrained start, no number of use

Passages by BM25 over each lab's own corpus. RAG gets the best of them that its context holds, the best last.
`conflict, current` is the conflict lab after its old passages were taken out of index and bank.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from common import show, write
from torch import Tensor

from regrad.data.passages import Passage
from regrad.evaluation.metrics import exact_match
from regrad.gradients.extractor import AtomExtractor
from regrad.gradients.merging import MERGES
from regrad.inference.decoding import GenerationRequest, generate
from regrad.lab.files import set_corpus, set_questions
from regrad.lab.sets import FORMER, SETS, LabQuestion
from regrad.lab.world import World
from regrad.meta_init import MetaInit, random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.retrieval.base import open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.hits import Hit
from regrad.settings import builtin_config, load_settings

KS = {"many": (3, 5, 10), "long": (1, 3, 5), "conflict": (2,), "unseen": (1, 3), "firms": (1, 3)}
_NEW_TOKENS = 4
_BATCH = 25


class Measured:
    """One lab's questions with what BM25 found, and one MetaInit."""

    def __init__(
        self, lm: LanguageModel, meta_init: MetaInit, corpus: Sequence[Passage], questions: Sequence[LabQuestion]
    ) -> None:
        self._lm, self._meta_init, self._questions = lm, meta_init, questions
        with tempfile.TemporaryDirectory() as folder:
            build_index(corpus, f"{folder}/index")
            retriever = open_retriever(f"{folder}/index")
            self._hits: list[list[Hit]] = retriever.search([item.question for item in questions], 10)
        self._extractor = AtomExtractor(lm, meta_init)
        self._alpha_P = meta_init.subspace.per_tensor(meta_init.step_sizes).float()
        self._steps: dict[str, Tensor] = {}

    def recall(self, k: int) -> float:
        """How often a gold passage is among the first k."""
        found = [
            any(hit.passage.id in q.passage_ids for hit in hits[:k])
            for q, hits in zip(self._questions, self._hits, strict=True)
        ]
        return sum(found) / len(found)

    def em(self, method: str, k: int, merge: str = "sum") -> float:
        """Exact match of one method."""
        right = 0
        for start in range(0, len(self._questions), _BATCH):
            asked = self._questions[start : start + _BATCH]
            hits = [found[:k] for found in self._hits[start : start + _BATCH]]
            requests = [self._request(q, found, method, merge) for q, found in zip(asked, hits, strict=True)]
            right += sum(
                exact_match(a.text, q.answers) for a, q in zip(generate(self._lm, requests), asked, strict=True)
            )
        return right / len(self._questions)

    def _request(self, item: LabQuestion, hits: Sequence[Hit], method: str, merge: str) -> GenerationRequest:
        prompts, update = self._lm.config.prompts, None
        passages = [hit.passage for hit in reversed(hits)] if method == "rag" else []
        while len(self._lm.encode(prompts.prompt(item.question, passages))) > 512 - _NEW_TOKENS - 1:
            passages = passages[1:]
        if method == "regrad":
            update = self._meta_init.phi0 - MERGES[merge](self._steps_of(hits), [hit.score for hit in hits])
        updates = self._lm.subspace.updates(update, self._meta_init.acts_on)
        return GenerationRequest(prompts.prompt(item.question, passages), updates, _NEW_TOKENS)

    def _steps_of(self, hits: Sequence[Hit]) -> Tensor:
        missing = [hit.passage for hit in hits if hit.passage.id not in self._steps]
        for item in self._extractor.extract(missing):
            if item.atom is not None:
                self._steps[item.passage.id] = item.atom * self._alpha_P
        return torch.stack([self._steps[hit.passage.id] for hit in hits])


def rows(lm: LanguageModel, meta_init: MetaInit, count: int, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row a lab and k."""
    world = World()
    for name in names:
        lab = SETS[name](world)
        corpus, questions = set_corpus(lab), set_questions(lab, count)
        parts = [(name, corpus, questions)]
        if name == "conflict":
            parts = [(f"{name}, changed", corpus, [q for q in questions if q.group == "changed"])]
            parts += [(f"{name}, current", [p for p in corpus if not p.id.endswith(FORMER)], parts[0][2])]
        if name == "unseen":
            groups = sorted({q.group for q in questions})
            parts = [(f"{name}, {group}", corpus, [q for q in questions if q.group == group]) for group in groups]
        for label, passages, asked in parts:
            measured = Measured(lm, meta_init, passages, asked)
            for k in KS[name] if "current" not in label else (1,):
                yield {
                    "lab": label,
                    "k": k,
                    "questions": len(asked),
                    "recall": measured.recall(k),
                    "direct": measured.em("direct", k),
                    "rag": measured.em("rag", k),
                    "regrad": measured.em("regrad", k),
                    "regrad, relative": measured.em("regrad", k, "relative"),
                }


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--labs", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--meta-init", default="runs/lab/meta-init")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_settings(ModelConfig, builtin_config("models/lab.yaml"))
    meta_init = None if arguments.quick else MetaInit.load(arguments.meta_init)
    lm = load_language_model(meta_init.model if meta_init else model, "cpu")
    measured = []
    count = 15 if arguments.quick else arguments.questions
    for row in rows(lm, meta_init or random_meta_init(lm, 1.0), count, arguments.labs):
        measured.append(row)
        print(row, flush=True)
    show(measured)
    columns = ("direct", "rag", "regrad", "regrad, relative")
    figures = {f"{r['lab']}, k={r['k']}: {column}": r[column] for r in measured for column in columns}
    if arguments.json:
        write(arguments.json, figures, measured, torch.device("cpu"))


if __name__ == "__main__":
    main()
