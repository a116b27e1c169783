"""Training a retriever by the answer's likelihood: bias and variance on toys, recall and answers in the lab.

    python benchmarks/trained_retrieval.py --meta-init runs/lab/meta-init --json trained_retrieval.json
    python benchmarks/trained_retrieval.py --parts texts --sets runs/real/sets --model FILE --encoder DIRECTORY
    python benchmarks/trained_retrieval.py --quick         # two toys, with few runs
    python benchmarks/trained_retrieval.py --figure docs/images/trained-retrieval.svg

The toys (`retrieval_training/toy.py`) have an exact gradient. The lab's `many` (`retrieval_training/lab.py`) has five
notes a person, which BM25 cannot tell apart: each objective trains the question encoder of a dense index, with the note
in the prompt and, with `--meta-init`, under the note's gradient. The texts (`retrieval_training/texts.py`) are SQuAD's
and Natural Questions', where the study of a real model (docs/real.md) has put them; a generator's settings in a YAML
file and a pretrained encoder are given.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import show, write
from retrieval_training import lab, texts, toy
from retrieval_training.trial import OBJECTIVES, SELECTORS


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = _parser()
    arguments = parser.parse_args()
    if "texts" in arguments.parts and arguments.model is None:
        parser.error("the texts need --model, a generator's settings")
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    if "toy" in arguments.parts:
        found = list(toy.rows(300 if arguments.quick else 4000, 2 if arguments.quick else toy.TOYS))
        figures |= toy.figures(found)
        if arguments.figure:
            toy.draw(found, arguments.figure)
        rows += _shown(found)
    if "lab" in arguments.parts and not arguments.quick:
        objectives = [name for name in arguments.objectives if name in OBJECTIVES]
        found = lab.rows(_lab_sizes(arguments), arguments.meta_init, arguments.under, objectives)
        figures |= lab.figures(found) if "jsa" in arguments.objectives else {}
        rows += _shown(found)
    if "texts" in arguments.parts:
        found = texts.rows(*_texts(arguments), arguments.under, arguments.objectives)
        figures |= texts.figures(found) if "jsa" in arguments.objectives else {}
        rows += _shown(found)
    if figures:
        show([figures])
    if arguments.json:
        write(arguments.json, figures, rows, torch.device("cpu"))


def _shown(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    show([{name: value for name, value in row.items() if not name.endswith("of each")} for row in found])
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--figure", default="", metavar="FILE")
    parser.add_argument("--parts", nargs="*", default=["toy", "lab"], choices=["toy", "lab", "texts"])
    parser.add_argument("--objectives", nargs="*", default=list(OBJECTIVES), choices=[*OBJECTIVES, *SELECTORS])
    parser.add_argument("--under", nargs="*", default=["prompt", "gradient"], choices=["prompt", "gradient"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--questions", type=int, default=60, help="that are answered")
    parser.add_argument("--k", type=int, default=5, help="candidates of a question")
    parser.add_argument("--steps", type=int, default=80)
    in_lab = parser.add_argument_group("the lab")
    in_lab.add_argument("--meta-init", default="", metavar="DIRECTORY", help="of the lab; without it only the prompt")
    in_lab.add_argument("--lab-lr", type=float, default=1e-2)
    in_lab.add_argument("--people", type=int, default=40, help="whose notes are trained on")
    in_lab.add_argument("--dimensions", type=int, default=256, help="of the lab's encoder")
    of_texts = parser.add_argument_group("the texts")
    of_texts.add_argument("--sets", default="runs/real/sets", metavar="DIRECTORY", help="sets of the real study")
    of_texts.add_argument("--model", type=Path, metavar="FILE", help="the generator's settings")
    of_texts.add_argument("--adapter", default="", metavar="DIRECTORY", help="its LoRA of ft-rag, if it has one")
    of_texts.add_argument("--start", default="", metavar="DIRECTORY", help="its MetaInit, if it has one")
    of_texts.add_argument("--encoder", default="models/all-minilm-l6-v2", metavar="DIRECTORY", help="of passages")
    of_texts.add_argument("--likelihoods", default="", metavar="FILE", help="keeps them (FILE.prompt, FILE.gradient)")
    of_texts.add_argument("--articles", type=int, default=60, help="of SQuAD whose passages are trained on")
    of_texts.add_argument("--training", type=int, default=480, help="questions that are trained on")
    of_texts.add_argument("--selected", type=int, default=8, help="of BM25's passages that a selector orders")
    of_texts.add_argument("--lr", type=float, default=2e-5)
    of_texts.add_argument("--searched", type=int, default=1200, help="questions whose passages are searched for")
    return parser


def _lab_sizes(given: argparse.Namespace) -> lab.Sizes:
    numbers = (given.people, given.k, given.steps, given.lab_lr, given.questions, given.seeds, given.dimensions)
    return lab.Sizes(*numbers)


def _texts(given: argparse.Namespace) -> tuple[texts.Texts, texts.Sizes]:
    what = texts.Texts(given.sets, given.model, given.adapter, given.start, given.encoder, given.likelihoods)
    numbers = (given.articles, given.training, given.k, given.steps, given.lr, given.seeds)
    return what, texts.Sizes(*numbers, given.searched, given.questions, given.selected)


if __name__ == "__main__":
    main()
