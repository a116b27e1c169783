"""What each kind of step runs; every function is called in a process of its own on the cluster and returns one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from regrad.evaluation.config import EvalConfig
from regrad.lab.config import LabConfig
from regrad.lab.report.config import LabReportConfig
from regrad.lab.report.plan import Job, corpora
from regrad.settings import builtin_config, load_settings
from regrad.training.lora.config import FinetuneConfig
from regrad.training.meta.config import MetaTrainConfig


def run_job(job: Job, settings: Any) -> str:
    """Do one step's work."""
    import torch

    os.environ["TTY_COMPATIBLE"] = "0"  # no moving bars: several steps run at once
    torch.set_num_threads(1)
    return _JOBS[job](settings)


def _world(config: LabConfig) -> str:
    from regrad.lab.files import write_lab
    from regrad.lab.sets.files import write_hard_lab

    storage = write_lab(config) if config.variant == "people" else write_hard_lab(config)
    return f"lab world at {storage.uri}"


def _memorised(config: LabReportConfig) -> str:
    from regrad.lab.report.files import write_memorised

    return write_memorised(config)


def _documents(config: LabReportConfig) -> str:
    from regrad.lab.report.files import write_documents

    return write_documents(config)


def _samples(config: LabReportConfig) -> str:
    from regrad.lab.report.files import write_samples

    return write_samples(config)


def _raw(config: LabReportConfig) -> str:
    """The start that meta-training begins with, as it is before the first step."""
    from regrad.meta_init import random_meta_init
    from regrad.models.loading import load_language_model

    train = load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"))
    uri = f"{config.output}/starts/raw"
    random_meta_init(load_language_model(train.model, "cpu"), train.inner.initial_step_size).save(uri)
    return f"untrained MetaInit at {uri}"


def _index(config: LabReportConfig) -> str:
    """All of them in one process: of a small index most of the time is the start of Java."""
    from regrad.data.corpora import read_passages
    from regrad.retrieval.bm25 import build_index

    found = corpora(config)
    counts = [build_index(read_passages(uri), f"{config.output}/index/{name}") for name, uri in found.items()]
    return f"{len(found)} BM25 indexes at {config.output}/index: {sum(counts)} passages"


def _measure(config: LabReportConfig) -> str:
    from regrad.lab.report.measuring import measure

    return measure(config)


def _train(config: MetaTrainConfig) -> str:
    """In this process: the start of a job with its workers takes longer than most of these trainings."""
    from regrad.training.meta.trainer import meta_train_in_process

    meta_init = meta_train_in_process(config)
    meta_init.save(config.output)
    return f"MetaInit {meta_init.fingerprint} at {config.output}: {meta_init.notes['steps']} steps"


def _finetune(config: FinetuneConfig) -> str:
    from regrad.training.lora.finetuning import finetune_in_process
    from regrad.training.meta.task_files import read_tasks

    adapter = finetune_in_process(config, read_tasks)
    adapter.save(config.output)
    notes = adapter.notes
    return f"adapter {adapter.digest} at {config.output}: {notes['steps']} steps, loss {notes['losses'][-1]:.4f}"


def _eval(config: EvalConfig) -> str:
    from regrad.evaluation.output import Output, plan_of
    from regrad.evaluation.plan import make_plan
    from regrad.evaluation.report.writing import write_report
    from regrad.evaluation.runner import Cells

    cells, output, runner = make_plan(config), Output(config.output), Cells(config, "cpu")
    planned = plan_of(config, cells)
    with output.alone():
        left = output.start(planned, cells)
        for cell in left:
            runner.run(cell)
        report = write_report(output, planned)
    return f"{len(left)} of {len(cells)} cells run; {report}"


def _ray_job(module: str) -> Callable[[Any], str]:
    def run(config: Any) -> str:
        import importlib

        line: str = importlib.import_module(f"ray_jobs.{module}").run(config)
        return line

    return run


_JOBS: dict[Job, Callable[[Any], str]] = {
    "world": _world,
    "memorised": _memorised,
    "documents": _documents,
    "samples": _samples,
    "raw": _raw,
    "measure": _measure,
    "index": _index,
    "train": _train,
    "finetune": _finetune,
    "adapters": _ray_job("train_adapters"),
    "bank": _ray_job("build_bank"),
    "eval": _eval,
}
