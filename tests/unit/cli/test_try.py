from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from regrad.cli.main import regrad
from regrad.cli.trial.config import TryConfig
from regrad.cli.trial.run import prepare
from regrad.data.corpora import read_passages
from regrad.data.passages import Passage
from regrad.errors import CorpusError, MetaInitError
from regrad.meta_init import random_meta_init
from regrad.models.loading import LanguageModel
from regrad.settings import builtin_config, load_settings
from tests.tools.refusals import refused


def config(tmp_path: Path, *changes: str) -> TryConfig:
    settings = [f"output={tmp_path}/out", "model=null", *changes]
    return load_settings(TryConfig, builtin_config("jobs/try.yaml"), settings)


def test_all_passages_are_written_and_those_that_are_banked_first(tmp_path: Path, tiny: LanguageModel) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(4):
        (folder / f"note{number}.txt").write_text(f"Note {number} is about Girton.\n")
    said: list[str] = []
    settings = config(tmp_path, "most_banked=3")
    prepare(str(folder), random_meta_init(tiny, 1.0), settings, said.append)
    ids = [passage.id for passage in read_passages(settings.index.corpus) if isinstance(passage, Passage)]
    assert ids == [f"note{number}.txt:1" for number in range(4)]
    banked = [passage.id for passage in read_passages(settings.bank.corpus) if isinstance(passage, Passage)]
    assert banked == ids[:3]
    assert said[0].endswith(": 4 passages of 4 files")
    assert "first 3" in said[1] and "most_banked=4" in said[1]


def test_the_server_answers_from_what_was_made_at_the_same_base(tmp_path: Path) -> None:
    settings = config(tmp_path, "start=/my/start", "model=/my/model")
    assert (settings.server.bank, settings.server.index) == (settings.bank.bank.uri, settings.index.output)
    assert settings.server.meta_init == settings.bank.meta_init == "/my/start"
    assert settings.server.model_path == settings.bank.model_path == "/my/model"


def test_what_was_left_out_is_said(tmp_path: Path, tiny: LanguageModel) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "note.txt").write_text("A note about Girton.")
    for number in range(7):
        (folder / f"empty{number}.txt").write_text("---")
    said: list[str] = []
    prepare(str(folder), random_meta_init(tiny, 1.0), config(tmp_path), said.append)
    assert said[0].endswith("1 passage of 8 files, 7 rejected (rejected.jsonl says why)")
    assert said[1].startswith("left out: empty0.txt (it has no words), ") and said[1].endswith("and 2 more")


def test_a_missing_folder_or_start_is_found_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrad.cli.trial.run.get_model", lambda *arguments: pytest.fail("fetched"))
    runner = CliRunner()
    with refused(CorpusError, "not_found"):
        runner.invoke(regrad, ["try", f"{tmp_path}/none"], catch_exceptions=False)
    (tmp_path / "note.txt").write_text("A note.")
    with refused(MetaInitError, "not_found"):
        arguments = ["try", str(tmp_path), "--set", f"start={tmp_path}/none", "--set", f"model={tmp_path}/none"]
        runner.invoke(regrad, arguments, catch_exceptions=False)
