"""Every `regrad` command that a document, a configuration or a message names exists, with the options given to it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from regrad.cli.jobs import COMMANDS
from regrad.cli.main import regrad
from regrad.cli.submit import SUBMITTED

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGURATIONS = [ROOT / "cluster.yaml", *sorted((ROOT / "configs").rglob("*.yaml"))]
SOURCES = sorted(path for part in ("regrad", "ray_jobs", "serve_app") for path in (ROOT / part).rglob("*.py"))
# In a document a command is a code span or a line of code; elsewhere, a code span.
_SPAN = re.compile(r"`(?:\.venv/bin/)?regrad ([^`\n]+)`")
_LINE = re.compile(r"^(?: {4}|\t)(?:\S+=\S+ )*(?:\.venv/bin/)?regrad (.+)$", re.MULTILINE)
_END = re.compile(r"\s*(?:&&|\|\||[|;#<>]|\.\.\.| 2>).*", re.DOTALL)


def commands_in(path: Path) -> Iterator[str]:
    text = path.read_text()
    yield from _SPAN.findall(text)
    if path.suffix == ".md":
        for line in _LINE.findall(text):
            first, *others = re.split(r"&&\s*regrad ", line)
            yield first
            yield from others


def problem_of(line: str) -> str:
    """What is wrong with a command line behind `regrad`; empty if nothing is."""
    try:
        words = shlex.split(_END.sub("", line))
    except ValueError:
        words = _END.sub("", line).split()
    command: click.Command = regrad
    known = {option for item in regrad.params for option in item.opts} | {"--help"}
    while words and isinstance(command, click.Group):
        if words[0].startswith("-"):
            break
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            # An argument's place holder, or a group that does something itself.
            return f"there is no verb {words[0]!r}" if re.fullmatch("[a-z-]+", words[0]) else ""
        command, words = found, words[1:]
        known |= {option for item in command.params for option in (*item.opts, *item.secondary_opts)}
    wrong = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return f"{command.name} has no {', '.join(wrong)}" if wrong else ""


@pytest.mark.parametrize("paths", [DOCUMENTS, CONFIGURATIONS, SOURCES], ids=["documents", "configurations", "sources"])
def test_every_command_that_is_named_exists(paths: list[Path]) -> None:
    named = [(path, line) for path in paths for line in commands_in(path)]
    assert len(named) > 10
    problems = [
        f"{path.relative_to(ROOT)}: regrad {line}: {problem}" for path, line in named if (problem := problem_of(line))
    ]
    assert not problems, "\n".join(problems)


def test_every_job_is_a_verb() -> None:
    assert set(COMMANDS) <= set(regrad.list_commands(click.Context(regrad)))  # type: ignore[attr-defined]


def test_a_wrong_command_is_found() -> None:
    assert problem_of("trian --config x") == "there is no verb 'trian'"
    assert problem_of("train --confg x.yaml && ls --all") == "train has no --confg"
    assert problem_of("bank verify URI --like x") == "verify has no --like"
    assert problem_of("train --config x # --not-an-option") == ""


def test_the_list_of_jobs_names_every_job() -> None:
    """Each module that `regrad submit` starts, in the order of the command line, and no others."""
    text = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    [listed] = re.findall(r"A job is one of (.+?);", text)
    assert re.findall(r"`(.+?)`", listed) == [verb.job.partition(":")[0] for verb in SUBMITTED]
