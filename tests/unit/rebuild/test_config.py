"""Settings of a rebuild: places that follow from each other, and what is refused before anything begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrad.cli.rebuild.checks import check_before
from regrad.errors import ConfigError, CorpusError, RebuildError
from regrad.rebuild.config import RebuildConfig
from regrad.rebuild.inputs import Inputs
from regrad.rebuild.versions import own_replaced
from regrad.settings import apply_override, builtin_config, load_settings, parse_settings, read_yaml
from tests.tools.refusals import refused


def lab(*changes: str, without: str = "") -> RebuildConfig:
    data = read_yaml(builtin_config("jobs/rebuild-lab.yaml"))
    data.pop(without, None)
    for change in changes:
        apply_override(data, change)
    return parse_settings(RebuildConfig, data, "the test")


def test_the_example_says_each_place_once() -> None:
    config = lab()
    assert config.train is not None
    assert config.train.output == "version://meta-init"
    assert (config.index[0].output, config.index[0].corpus) == ("version://index", config.corpus)
    assert (config.build.meta_init, config.build.bank.uri) == ("version://meta-init", "version://bank")
    assert config.build.corpus == config.corpus
    assert config.eval.output == "version://eval"


def test_with_a_meta_init_that_exists_nothing_is_trained() -> None:
    config = lab("meta_init=/a/meta-init", without="train")
    assert config.train is None
    assert config.build.meta_init == "/a/meta-init"


def test_several_indexes_have_names_and_are_joined() -> None:
    two = "[{output: version://bm25}, {output: version://index, fuse: {indexes: [version://bm25, /other]}}]"
    first, second = lab(f"index={two}").index
    assert first.corpus is not None
    assert second.corpus is None
    assert own_replaced(second.model_dump()["fuse"]["indexes"], {"bm25": "/x"}) == ["/x", "/other"]
    with refused(RebuildError, "no_such_part", part="bm25"):
        own_replaced(["version://bm25"], {"bank": "/b"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("meta_init=/a/meta-init", "give `train`, or `meta_init` instead of it"),
        ("build.bank.uri=runs/bank", "build.bank.uri belongs to the version"),
        ("train.output=runs/meta-init", "train.output belongs to the version"),
        ("index.output=runs/index", "index.0.output belongs to the version"),
        ("index=[{}, {}]", "give each index its own name"),
        ("promotion.method=regrade", "promotion.method is 'regrade'"),
        ("promotion.k=7", "promotion.k is 7"),
        ("promotion.minimum=1.5", "promotion.minimum"),
        ("serving.release=a", "did you mean 'serving.releases'?"),
        ("index=[]", "index"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(change: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lab(change)
    assert words in str(caught.value)


def test_content_is_known_again_at_another_place_and_not_when_it_has_changed(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"id": "1", "text": "{text}"}}\n')
    found = [Inputs().digested({"corpus": str(tmp_path / f"{name}.jsonl"), "threads": 2}) for name in "abc"]
    assert found[0] == found[1] != found[2]
    assert found[0]["threads"] == 2


def test_templates_are_no_locations_and_a_missing_file_is_named(tmp_path: Path) -> None:
    prompts: dict[str, Any] = {"prompts": {"passage": "/{title}", "answer": "see http://x {answer}"}}
    assert Inputs().digested(prompts) == prompts
    missing = str(tmp_path / "questions.jsonl")
    with refused(RebuildError, "input_not_found", uri=missing):
        Inputs().digested({"path": missing})


def test_a_missing_or_empty_corpus_is_found_before_the_rebuild(tmp_path: Path) -> None:
    settings = [f"output={tmp_path / 'out'}", f"corpus={tmp_path / 'corpus.jsonl'}"]
    config = load_settings(RebuildConfig, builtin_config("jobs/rebuild-lab.yaml"), settings)
    with pytest.raises(CorpusError):
        check_before(config)
    (tmp_path / "corpus.jsonl").touch()
    with pytest.raises(CorpusError):
        check_before(config)


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regrad.cli.rebuild.checks.find_spec", lambda name: None)
    with refused(RebuildError, "library_missing", library="deepspeed"):
        check_before(lab(f"output={tmp_path}"))
