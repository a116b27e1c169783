"""A whole rebuild with the real jobs: done once, skipped the second time, and only the change when the corpus grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrad.bank.reader import BankReader
from regrad.cli.rebuild.job import plan, rebuild_of
from regrad.cli.rebuild.steps import serve
from regrad.data.passages import encode_passages
from regrad.lab.config import LabConfig
from regrad.lab.files import held_out_corpus, write_lab
from regrad.lab.world import World
from regrad.meta_init import random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from regrad.rebuild.config import RebuildConfig
from regrad.rebuild.flow import roll_back
from regrad.rebuild.versions import Versions
from regrad.retrieval.base import open_retriever
from regrad.settings import builtin_config, load_settings, parse_settings
from regrad.storage import Storage
from serve_app.config import ServeConfig
from serve_app.rollout import read_releases

pytestmark = pytest.mark.usefixtures("local_cluster")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rebuild")
    model = load_settings(ModelConfig, builtin_config("models/lab.yaml"))
    random_meta_init(load_language_model(model, "cpu"), 1.0).save(folder / "meta-init")
    write_lab(LabConfig(output=str(folder / "lab"), questions=8, task_records=4))
    workers = {"workers": 1, "cpus_per_worker": 0.5}
    own = {"meta_init": "version://meta-init", "bank": "version://bank"}
    people = {
        "name": "people",
        "path": str(folder / "lab/questions.jsonl"),
        "passages": {"source": "index", "index": "version://index"},
    }
    return {
        "output": str(folder / "out"),
        "corpus": str(folder / "corpus.jsonl"),
        "meta_init": str(folder / "meta-init"),
        "index": {"threads": 1},
        "build": {"bank": {"codec": "int8"}, "cluster": workers},
        "eval": {
            "models": {"lab": model.model_dump(mode="json")},
            "sets": [people],
            "methods": [{"name": "regrad", **own}],
            "k": [1],
            "max_new_tokens": 4,
            "cluster": workers,
        },
        "promotion": {"allowed_drop": 1.0},
        "serving": {"releases": str(folder / "releases.json"), "collection": str(folder / "served")},
        "cost": {"node_hour": 1.0},
    }


def test_a_rebuild_skips_what_is_done_computes_what_is_new_and_goes_back(
    settings: dict[str, Any], world: World
) -> None:
    corpus, output = Path(settings["corpus"]), Storage(settings["output"])
    passages = held_out_corpus(world)[:14]
    corpus.write_bytes(encode_passages(passages[:12]))
    config = parse_settings(RebuildConfig, settings, "the test")

    line, refused = rebuild_of(config, lambda _: None)
    assert "is in force" in line
    assert refused == 0
    files = {name for name in output.files() if "lock" not in name}
    said: list[str] = []
    assert "nothing has changed" in rebuild_of(config, said.append)[0]
    assert all("done before" in text for text in said)
    assert {name for name in output.files() if "lock" not in name} == files

    corpus.write_bytes(encode_passages(passages))
    planned = {one.step: one for one in plan(config).estimates}
    assert planned["build"].count == 14
    assert (planned["build"].seconds or 0) > 0
    rebuild_of(config, lambda _: None)
    first, second = map(Versions(output).read, Versions(output).ids())
    assert first.places["bank"] == second.places["bank"]
    assert (first.bank_version, second.bank_version) == (1, 2), "of one bank, so twelve gradients were there already"
    with BankReader(second.places_in(output)["bank"]) as bank:
        assert len(bank) == 14
    everyone = {passage.id for passage in passages}
    assert served(settings, everyone) == (2, everyone)

    roll_back(output, lambda version: serve(config, version))
    assert served(settings, everyone) == (1, {passage.id for passage in passages[:12]})


def served(settings: dict[str, Any], ids: set[str]) -> tuple[int | None, set[str]]:
    """The bank's version that servers are told to answer from, and which of these passages their index has."""
    places = settings["serving"]
    application = ServeConfig(
        meta_init=settings["meta_init"], bank="none", index=places["collection"], releases=places["releases"]
    )
    (release,) = read_releases(application).releases
    retriever = open_retriever(places["collection"])
    known = retriever.known(sorted(ids))
    retriever.close()
    return release.bank_version, set(known)
