"""Training a retriever by the answer's likelihood: bias and variance on a toy, recall and answers in the lab.

    python benchmarks/trained_retrieval.py --meta-init runs/lab/meta-init --json trained_retrieval.json
    python benchmarks/trained_retrieval.py --quick         # the toy alone, with few runs
    python benchmarks/trained_retrieval.py --figure docs/images/trained-retrieval.svg

The toy (`retrieval_training/toy.py`) has an exact gradient. The lab's `many` (`retrieval_training/lab.py`) has five
notes a person, which BM25 cannot tell apart: each objective trains the question encoder of a dense index, with the note
in the prompt and, with `--meta-init`, under the note's gradient.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import show, write
from retrieval_training import lab, toy


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--figure", default="", metavar="FILE")
    parser.add_argument("--meta-init", default="", metavar="DIRECTORY", help="of the lab; without it only the prompt")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--people", type=int, default=40, help="whose notes are trained on")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--questions", type=int, default=60, help="that are answered")
    parser.add_argument("--dimensions", type=int, default=256, help="of the lab's encoder")
    parser.add_argument("--objectives", nargs="*", default=list(lab.OBJECTIVES), choices=list(lab.OBJECTIVES))
    parser.add_argument("--parts", nargs="*", default=["toy", "lab"], choices=["toy", "lab"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    if "toy" in arguments.parts:
        found = list(toy.rows(300 if arguments.quick else 4000))
        show(found)
        figures |= toy.figures(found)
        rows += found
        if arguments.figure:
            toy.draw(found, arguments.figure)
    if "lab" in arguments.parts and not arguments.quick:
        numbers = (arguments.people, arguments.steps, arguments.questions, arguments.seeds, arguments.dimensions)
        found = lab.rows(lab.Sizes(*numbers), arguments.meta_init, arguments.objectives)
        show(found)
        figures |= lab.figures(found)
        rows += found
    show([figures])
    if arguments.json:
        write(arguments.json, figures, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
