"""One step of a study: a `regrad` command or a function of the study, with what it needs and what it makes.

Printed, a step's work is the line to type, and a comment where it is run in another way.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrad.bank.config import BuildConfig
from regrad.cli.main import regrad
from regrad.cli.options import QUARANTINED
from regrad.errors import EvaluationError
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.plan import short_hash
from regrad.lab.config import LabConfig
from regrad.rebuild import steps
from regrad.retrieval.config import IndexConfig
from regrad.settings import Settings, load_settings
from regrad.training.lora.config import AdaptersConfig, AugmentConfig, FinetuneConfig
from regrad.training.lora.finetuning import finetune_in_process
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.trainer import meta_train_in_process
from regrad.training.task_files.config import TasksConfig

VERBS: dict[str, type[Settings]] = {
    "lab world": LabConfig,
    "index": IndexConfig,
    "tasks": TasksConfig,
    "train": MetaTrainConfig,
    "finetune": FinetuneConfig,
    "augment": AugmentConfig,
    "adapters": AdaptersConfig,
    "build": BuildConfig,
    "eval": EvalConfig,
}
"""The verbs of `regrad` that a step can be, and the settings that they read."""

_IN_PROCESS = "  # run in one process, without workers and checkpoints"


@dataclass(frozen=True)
class Command:
    """`regrad VERB --config FILE --set KEY=VALUE ...`."""

    verb: str
    config: Path
    changes: tuple[str, ...] = ()
    as_job: bool = False
    """Whether `train` and `finetune` are jobs with workers and checkpoints, for trainings that take longer than these
    take to start."""

    def __str__(self) -> str:
        return shlex.join(["regrad", *self.arguments]) + (_IN_PROCESS if self.in_process else "")

    @property
    def in_process(self) -> bool:
        """Whether it is the verb's training, run in this process, and not the verb itself."""
        return self.verb in ("train", "finetune") and not self.as_job

    @property
    def arguments(self) -> list[str]:
        """What follows `regrad`."""
        changes = [part for change in self.changes for part in ("--set", change)]
        return [*self.verb.split(), "--config", str(self.config), *changes]

    @property
    def settings(self) -> Any:
        """What the verb reads; raises `ConfigError` as it would."""
        return load_settings(VERBS[self.verb], self.config, self.changes)

    def content(self, exclude_defaults: bool = False) -> dict[str, Any]:
        """The settings that decide the result."""
        settings, free = self.settings, {"cluster", "watch"}
        return settings.model_dump(mode="json", exclude=free, exclude_defaults=exclude_defaults)  # type: ignore[no-any-return]

    def run(self) -> str:
        """Do it in this process; returns the line that it ends with."""
        if self.in_process:
            return _train(self.settings) if self.verb == "train" else _finetune(self.settings)
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                regrad.main(self.arguments, standalone_mode=False)
        except SystemExit as end:
            if end.code not in (0, QUARANTINED):
                text = f"`{self}` ended with exit status {end.code}"
                raise EvaluationError(text, code="step_failed", command=str(self), status=end.code) from end
        return (said.getvalue().strip().splitlines() or ["done"])[-1]


@dataclass(frozen=True)
class Function:
    """A function of the study on its settings; `keys` are those that its result depends on."""

    function: Callable[[Any], str]
    settings: Settings
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}"

    def content(self, exclude_defaults: bool = False) -> dict[str, Any]:
        """The settings that decide the result."""
        found = self.settings.model_dump(mode="json", exclude_defaults=exclude_defaults)
        return {key: found[key] for key in self.keys if key in found}

    def run(self) -> str:
        """Do it in this process; returns one line about it."""
        return self.function(self.settings)


@dataclass(frozen=True)
class Step:
    """One piece of work, complete or absent.

    `needs` are the names of the steps whose results it reads, `makes` the place of its own. Nothing runs beside a step
    that is `alone`: it is timed.
    """

    name: str
    work: Command | Function
    makes: str
    needs: frozenset[str] = frozenset()
    alone: bool = False

    @property
    def is_evaluation(self) -> bool:
        """Whether it consists of cells that know themselves which of them are done."""
        return isinstance(self.work, Command) and self.work.verb == "eval"

    @property
    def streams(self) -> bool:
        """Whether Ray Data does it, which wants a CPU for its readers beside that of its worker: one at a time."""
        return isinstance(self.work, Command) and self.work.verb in ("build", "adapters")

    @property
    def recorded(self) -> steps.Step:
        """The same as its run record has it; raises `ConfigError` if its settings are wrong."""
        settings = self.work.content()
        return steps.Step(self.name, short_hash(settings), settings, lambda _: steps.StepOutcome(self.run()))

    def run(self) -> str:
        """Do its work, on one thread and without moving bars: several steps run at once."""
        import torch

        os.environ["TTY_COMPATIBLE"] = "0"
        torch.set_num_threads(1)
        return self.work.run()


def _train(config: MetaTrainConfig) -> str:
    meta_init = meta_train_in_process(config)
    meta_init.save(config.output)
    return f"MetaInit {meta_init.fingerprint} at {config.output}: {meta_init.notes['steps']} steps"


def _finetune(config: FinetuneConfig) -> str:
    made = finetune_in_process(config)
    made.save(config.output)
    notes = made.notes
    place = f"{made.KIND.words} {made.digest} at {config.output}"
    return f"{place}: {notes['steps']} steps, loss {notes['losses'][-1]:.4f}"
