"""`python -m studies.real.ship RUN TARGET`: of a start that the study trained, the one that comes with the package.

phi0 is rounded to bf16, which halves its size; the outer losses before and after say what that costs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import torch

from regrad.data.tasks import read_tasks
from regrad.meta_init import MetaInit
from regrad.models.loading import LanguageModel, load_language_model
from regrad.text import readable_size
from regrad.training.meta.reading import reading_sums
from studies.real.plan import KNOWN
from studies.real.reading import SHAPE, point_of

_TASKS = 16
_MOST_COST = 0.01  # nats
_KEPT = ("steps", "seconds", "workers", "dev")
"""What of a run's notes is of use to others; its settings name places of the machine that it ran on."""


@click.command()
@click.argument("start")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--tasks", required=True, help="Tasks of articles that the start was not trained on (tasks/held).")
def main(start: str, target: Path, tasks: str) -> None:
    """Round the MetaInit START, measure it before and after, and write it to TARGET."""
    trained = MetaInit.load(start)
    lm = load_language_model(trained.model, "cpu")
    model = trained.model.model_copy(update={"path": f"models/{KNOWN}"})
    notes = {name: trained.notes[name] for name in _KEPT if name in trained.notes}
    rounded = replace(trained, phi0=trained.phi0.bfloat16().float(), model=model, notes=notes)
    before, after = (losses(lm, found, tasks) for found in (trained, rounded))
    click.echo(f"outer loss with the right passage, another one, none: {before}; rounded {after}")
    if after[0] - before[0] > _MOST_COST:
        raise click.ClickException(f"rounding costs {after[0] - before[0]:.3f} nats, more than {_MOST_COST}")
    rounded.save(target)
    click.echo(f"MetaInit {rounded.fingerprint} at {target}, {readable_size(size_of(target))}")


def losses(lm: LanguageModel, start: MetaInit, tasks: str) -> tuple[float, float, float]:
    """Nats a token over the first tasks of a file."""
    torch.set_num_threads(2)
    sums = reading_sums(lm, point_of(start), read_tasks(tasks)[:_TASKS], shape=SHAPE)
    right, other, none = (round(total / sums.tasks, 4) for total in (sums.right, sums.other, sums.none))
    return right, other, none


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.iterdir())


if __name__ == "__main__":
    main()
