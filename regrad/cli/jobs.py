"""The verbs that read settings and run a job with them: one table, since they differ in nothing else."""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from regrad.cli.options import QUARANTINED, printable, settings_options
from regrad.settings import load_settings
from regrad.text import readable_size


@dataclass(frozen=True)
class JobVerb:
    """A verb: its built-in configuration, its settings class and its job (`module:name`), and its help.

    `summary` is its line in the list of verbs, and the first of its own help; `details` are the rest of that. The job
    is imported after the settings were read, so that a mistake in them is reported before Ray is loaded.
    """

    name: str
    config: str
    settings: str
    job: str
    summary: str
    details: str = ""


JOBS = (
    JobVerb(
        "synth",
        "jobs/synth-lab.yaml",
        "regrad.training.synthesis.config:SynthesisConfig",
        "ray_jobs.synthesize:run",
        "Write questions for your own passages: corpus -> tasks (Ray Data).",
        "The corpus needs no questions of its own; the tasks, with answers, are for `regrad train`.",
    ),
    JobVerb(
        "tasks",
        "jobs/tasks-lab.yaml",
        "regrad.training.task_files.config:TasksConfig",
        "ray_jobs.make_tasks:run",
        "Make tasks from a question set: questions, passages -> tasks (by an index).",
        """They are for `regrad train`, with gold, retrieved or given passages.

        Writes train.jsonl and, with `dev_fraction`, dev.jsonl, and says how many questions were left out, and why. What
        was retrieved is kept until all is written: if interrupted, run the same command to resume.""",
    ),
    JobVerb(
        "train",
        "jobs/train-lab.yaml",
        "regrad.training.meta.config:MetaTrainConfig",
        "ray_jobs.meta_train:run",
        "Meta-train: tasks -> MetaInit (Ray Train, DeepSpeed).",
        "Trains phi0 and the step sizes; a MetaInit is a PEFT adapter directory with step sizes.",
    ),
    JobVerb(
        "index",
        "jobs/index-lab.yaml",
        "regrad.retrieval.config:IndexConfig",
        "ray_jobs.index_corpus:run",
        "Index a corpus for retrieval.",
        "A corpus is passages of id, title, text.",
    ),
    JobVerb(
        "build",
        "jobs/build-lab.yaml",
        "regrad.bank.config:BuildConfig",
        "ray_jobs.build_bank:build",
        "Fill a Gradient Bank: corpus -> atoms (Ray Data).",
        """Makes a version of the bank with one atom for every passage of the corpus.

        Passages that are not in the corpus are dropped. Passages that the bank already has, with the same text, are not
        computed again. If interrupted, run the same command to resume. The exit status is 3 if some passages could not
        be used: `regrad bank info --quarantine` lists them.""",
    ),
    JobVerb(
        "finetune",
        "jobs/finetune-lab.yaml",
        "regrad.training.lora.config:FinetuneConfig",
        "ray_jobs.finetune:run",
        "Train one LoRA for all questions: the baselines CPT and fine-tuned RAG; or a soft prompt (Ray Train).",
    ),
    JobVerb(
        "retriever",
        "jobs/retriever-lab.yaml",
        "regrad.training.retriever.config:RetrieverTrainConfig",
        "ray_jobs.train_retriever:run",
        "Train a retriever by whether its passages help to answer: its encoders, or a selector (Ray Train).",
        """Also the passages' encoder, whose index is made anew meanwhile, and the generator.

        Writes the index again with what was trained: every method, `regrad eval` and a server open it like any other.
        If interrupted, run the same command to resume.""",
    ),
    JobVerb(
        "augment",
        "jobs/augment-lab.yaml",
        "regrad.training.lora.config:AugmentConfig",
        "ray_jobs.augment:run",
        "Rewrite passages and write questions about them, to train adapters on (Ray Data).",
        "Or take both from a data_aug or task file.",
    ),
    JobVerb(
        "adapters",
        "jobs/adapters-lab.yaml",
        "regrad.training.lora.config:AdaptersConfig",
        "ray_jobs.train_adapters:train",
        "Train a LoRA for each passage, into a bank (Ray Data).",
        """Makes a version of the bank with a LoRA for every passage that `regrad augment` wrote about. With
        `--set translator=PATH`, of `regrad translator`, they are generated, for any corpus.

        Passages that are not in the corpus are dropped. If interrupted, run the same command to resume. The exit
        status is 3 if some passages could not be used: `regrad bank info --quarantine` lists them.""",
    ),
    JobVerb(
        "predictor",
        "jobs/predictor-lab.yaml",
        "regrad.training.predictor.config:PredictorConfig",
        "ray_jobs.train_predictor:run",
        "Train a network that predicts updates from solved questions: RAG-GD (Ray Train).",
        """They are updates of a LoRA of `regrad finetune`.

        If interrupted, run the same command to resume.""",
    ),
    JobVerb(
        "translator",
        "jobs/translator-lab.yaml",
        "regrad.training.translator.config:TranslatorConfig",
        "ray_jobs.train_translator:run",
        "Train a network that generates passages' LoRAs from their texts: DyPRAG (Ray Train).",
        """It is trained on a bank of `regrad adapters`.

        If interrupted, run the same command to resume.""",
    ),
    JobVerb(
        "eval",
        "jobs/eval-lab.yaml",
        "regrad.evaluation.config:EvalConfig",
        "ray_jobs.evaluate:run",
        "Score every method on question sets, and write a report (Ray).",
        """If interrupted, run the same command to resume: finished cells are kept as long as their settings and data
        are the same.""",
    ),
)

REBUILD = JobVerb(
    "rebuild",
    "jobs/rebuild-lab.yaml",
    "regrad.rebuild.config:RebuildConfig",
    "regrad.cli.rebuild.job:run",
    "Do everything for a changed corpus: train, index, build, verify, evaluate, promote (Ray).",
)
"""As a job; `regrad rebuild` itself has further verbs."""


def _command(verb: JobVerb) -> click.Command:
    def run(
        config: str | Path, overrides: tuple[str, ...], report_only: bool = False, check: str | None = None
    ) -> None:
        if check:
            _check_index(check)
            return
        settings = load_settings(_named(verb.settings), config, overrides)
        if report_only:
            from regrad.evaluation.output import Output
            from regrad.evaluation.report.writing import write_report

            click.echo(write_report(Output(settings.output)))
            return
        job = _named(verb.job)
        from ray_jobs.cluster import joined
        from regrad.storage import check_writable

        def line(result: Any) -> str:
            return result if isinstance(result, str) else _described(result, settings.bank.uri)

        if joined():
            from ray_jobs.job_records import recorded

            result = recorded(settings, job, verb.name, line)
        else:
            check_writable(settings.output if hasattr(settings, "output") else settings.bank.uri)
            result = job(settings)
        click.echo(line(result))
        if not isinstance(result, str):
            # A job that fills a bank: its exit status says whether passages were quarantined.
            sys.exit(QUARANTINED if result.refused else 0)

    if verb.name == "eval":
        run = click.option("--report-only", is_flag=True, help="Only write the report from the finished cells.")(run)
    if verb.name == "index":
        run = click.option("--check", metavar="URI", help="Only read every byte of an index, to find damage.")(run)
    text = f"{verb.summary}\n\n{inspect.cleandoc(verb.details)}"
    return click.command(verb.name, help=text)(settings_options(verb.config)(run))


def _check_index(uri: str) -> None:
    from regrad.retrieval.whole_check import check_whole

    for index in check_whole(uri):
        click.echo(printable(f"{index.uri}: {index.kind.upper()} index, {readable_size(index.bytes)} as written"))


def _described(built: Any, uri: str) -> str:
    from ray_jobs.build_bank import describe

    return describe(built.manifest, uri)


def _named(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


COMMANDS: dict[str, click.Command] = {verb.name: _command(verb) for verb in JOBS}
