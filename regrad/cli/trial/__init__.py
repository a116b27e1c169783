"""`regrad try`: a folder of your own text, asked on a page in minutes."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options


@click.command("try")
@click.argument("folder", type=click.Path(path_type=str))
@settings_options("jobs/try.yaml")
@click.option("--browser/--no-browser", default=True, help="Open the page once it is up.")
@click.option(
    "--ask", "question", metavar="QUESTION", help="Ask this question in every way, print the answers and exit."
)
@click.option(
    "--questions",
    metavar="FILE",
    help='Ask all questions of a file of {"question": ..., "answers": [...]} lines, print how many each way gets '
    "right and exit.",
)
@click.option("-k", type=click.IntRange(1), default=1, show_default=True, help="Passages for --ask and --questions.")
def try_(
    folder: str,
    config: str | Path,
    overrides: tuple[str, ...],
    browser: bool,
    question: str | None,
    questions: str | None,
    k: int,
) -> None:
    """Ask the text, Markdown, HTML and PDF files of FOLDER: by the model alone, by prompt, by gradients, by both.

    Indexes the passages, computes their gradients, and opens a page that answers each question in all four ways. Run it
    again after the files have changed: only what is new is computed.
    """
    from regrad.cli.trial.config import TryConfig
    from regrad.settings import load_settings

    settings = load_settings(TryConfig, config, overrides)
    from regrad.cli.trial.asking import check_limits, read_asked
    from regrad.cli.trial.run import Wanted, run_trial

    asked = []
    if question is not None or questions is not None:  # what is wrong is found before anything is computed
        check_limits(k, settings.serve.limits)
    if questions is not None:
        asked = read_asked(questions, settings.serve.limits)
    run_trial(folder, settings, Wanted(question, asked, k, browser), click.echo)
