"""The authors' public code beside this library, number by number, on the lab's base in float32 on the CPU.

    python benchmarks/fidelity.py --regrad-release DIR --prag-release DIR --json fidelity.json      (about five minutes)

A directory is a checkout of github.com/oneal2000/ReGrad or .../PRAG; without one its rows say so. Both sides have the
same base, start and token ids. Where regrad's defaults differ from the release, the comparison is made with settings
that reproduce it, and the column "with regrad's defaults" has what the defaults give. docs/fidelity.md has the rest.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import show, write
from releases import metric_rows, prag_rows, regrad_rows
from releases.code import Release, open_prag, open_regrad
from releases.regrad_rows import EXACT, TRAINING, Sizes
from releases.rows import Row, skipped
from releases.subject import Subject, load

from regrad.meta_init import MetaInit

QUICK = Sizes(passages=6, questions=6, tasks=2)


def main() -> None:
    """Run every comparison for which there is a release, print the table and write the figures."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")  # of what the releases call, which has been deprecated since
    sizes = QUICK if arguments.quick else Sizes()
    pairs = metric_rows.awkward(500)
    # Opened first: a checkout that is not whole is found before half an hour of other rows.
    regrad_code = open_regrad(arguments.regrad_release) if arguments.regrad_release else None
    prag_code = open_prag(arguments.prag_release) if arguments.prag_release else None
    with tempfile.TemporaryDirectory(prefix="fidelity.") as folder:
        subject = Subject.make(Path(folder))
        given = MetaInit.load(arguments.meta_init) if arguments.meta_init else None
        trained = given or subject.trained(arguments.start_steps)
        starts = {"untrained": subject.untrained(load(subject.release)), "trained": trained}

        def regrad(release: Release) -> Iterator[Row]:
            yield from regrad_rows.rows(release, subject, starts, sizes)
            yield from metric_rows.regrad_rows(release, pairs)

        def prag(release: Release) -> Iterator[Row]:
            yield from prag_rows.rows(release, subject, count=3)
            yield from metric_rows.prag_rows(release, pairs)

        rows = [
            *_of(regrad_code, "--regrad-release", regrad),
            *_of(prag_code, "--prag-release", prag),
            *regrad_rows.own_rows(subject, starts, sizes),
        ]
    shown = [row.shown() for row in rows]
    print(_markdown(shown)) if arguments.markdown else show(shown)
    if arguments.json:
        write(arguments.json, figures(rows), shown, torch.device("cpu"))


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regrad-release", metavar="DIR", help="a checkout of the ReGrad authors' code")
    parser.add_argument("--prag-release", metavar="DIR", help="a checkout of the PRAG authors' code")
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/fidelity.md has it")
    parser.add_argument("--quick", action="store_true", help="few cases")
    parser.add_argument("--start-steps", type=int, default=150, help="of the training that makes the trained start")
    parser.add_argument(
        "--meta-init",
        metavar="DIR",
        help="the trained start, as `regrad demo` makes one; else one is trained",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def _of(release: Release | None, option: str, rows: Callable[[Release], Iterable[Row]]) -> list[Row]:
    if release is None:
        return [skipped(f"everything of {option}", f"{option} DIR was not given")]
    return list(rows(release))


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """The largest relative differences by name; those that a release is needed for are left out without it."""
    names = {
        "atoms_max_relative": [row for row in rows if row.comparison.startswith("atoms")],
        "updates_max_relative": [row for row in rows if row.comparison.startswith("updates")],
        "answers_different": [row for row in rows if row.comparison.startswith("answers")],
        "meta_gradient_max_relative": [
            row for row in rows if row.comparison.startswith(tuple(f"meta-gradient, {name}" for name in EXACT))
        ],
        "meta_gradient_difference_untrained_max_relative": _difference(rows, "untrained"),
        "meta_gradient_difference_trained_max_relative": _difference(rows, "trained"),
        "training_40_steps_max_relative": [row for row in rows if row.comparison.startswith(TRAINING)],
        "prag_change_max_relative": [row for row in rows if row.comparison == prag_rows.CHANGE],
        "prag_merge_max_relative": [row for row in rows if row.comparison.startswith("PRAG: merge")],
        **{
            f"difference_from_graph_{row.comparison.split(', ')[1].removesuffix(' start').replace(' ', '_')}": [row]
            for row in rows
            if row.comparison.startswith("difference beside graph")
        },
        "scores_max_difference": [row for row in rows if row.comparison.startswith("scores")],
    }
    return {name: max(row.relative or 0.0 for row in found) for name, found in names.items() if found}


def _markdown(shown: Sequence[dict[str, Any]]) -> str:
    lines = [list(shown[0]), ["---"] * len(shown[0]), *([_text(value) for value in row.values()] for row in shown)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _difference(rows: Sequence[Row], start: str) -> list[Row]:
    return [
        row
        for row in rows
        if row.comparison.startswith("meta-gradient, difference") and row.comparison.endswith(f", {start} start")
    ]


if __name__ == "__main__":
    main()
