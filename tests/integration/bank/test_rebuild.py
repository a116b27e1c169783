"""Whole rebuilds with the real jobs on S3, under a live server that follows them.

Done once, skipped the second time, and only the change when the corpus has changed; the server takes each version up
and goes back without a failed request, and a prune keeps what it must.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import pytest
import requests

from regrad.bank.format import versions
from regrad.bank.reader import BankReader
from regrad.cli import serve as serve_verbs
from regrad.cli.rebuild.job import plan, rebuild_of
from regrad.cli.rebuild.serving import in_use
from regrad.cli.rebuild.steps import serve
from regrad.data.passages import Passage, encode_passages
from regrad.lab.config import LabConfig
from regrad.lab.files import held_out_corpus, write_lab
from regrad.lab.world import World
from regrad.meta_init import random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from regrad.rebuild.config import RebuildConfig
from regrad.rebuild.flow import roll_back
from regrad.rebuild.prune import prune
from regrad.rebuild.versions import Versions
from regrad.retrieval.base import open_retriever
from regrad.settings import builtin_config, load_settings, parse_settings
from regrad.storage import Storage
from serve_app.app import anywhere, serving
from serve_app.config import ServeConfig
from serve_app.rollout import read_releases
from tests.tools.patience import Deadline, patient

pytestmark = pytest.mark.usefixtures("local_cluster")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, s3: str) -> dict[str, Any]:
    folder, place = tmp_path_factory.mktemp("rebuild"), f"{s3}/rebuild"
    model = load_settings(ModelConfig, builtin_config("models/lab.yaml"))
    random_meta_init(load_language_model(model, "cpu"), 1.0).save(f"{place}/meta-init")
    write_lab(LabConfig(output=str(folder / "lab"), questions=8, task_records=4))
    workers = {"workers": 1, "cpus_per_worker": 0.5}
    own = {"meta_init": "version://meta-init", "bank": "version://bank"}
    people = {
        "name": "people",
        "path": str(folder / "lab/questions.jsonl"),
        "passages": {"source": "index", "index": "version://index"},
    }
    return {
        "output": f"{place}/out",
        "corpus": f"{place}/corpus.jsonl",
        "meta_init": f"{place}/meta-init",
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
        "serving": {"releases": f"{place}/releases.json", "collection": f"{place}/served"},
        "cost": {"node_hour": 1.0},
    }


@dataclass
class Client:
    """Asks the server the same question again and again; what it was answered, and with which passage."""

    url: str
    statuses: list[int] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)

    @contextmanager
    def asking(self) -> Iterator[None]:
        stop = threading.Event()

        def ask() -> None:
            body = {"question": "Who is known here?", "method": "regrad", "k": 1, "max_new_tokens": 2}
            while not stop.is_set():
                response = requests.post(f"{self.url}/v1/answer", json=body, timeout=patient(60))
                self.statuses.append(response.status_code)
                if response.ok:
                    found = response.json()
                    assert found["degraded"] == []
                    self.answers.append((found["bank_version"].partition("-")[0], found["passages"][0]["id"]))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def wait_for(self, version: str) -> None:
        """Until an answer was given from this version of the bank."""
        deadline, first = Deadline(60), len(self.answers)
        while all(found != version for found, _ in self.answers[first:]):
            assert not deadline.over
            time.sleep(0.05)


def test_versions_on_s3_are_taken_up_rolled_back_and_pruned_under_a_live_server(
    settings: dict[str, Any], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_TIMEOUT_SECONDS", "_WAIT_SECONDS"):
        monkeypatch.setattr(serve_verbs, name, patient(getattr(serve_verbs, name)))
    output = Storage(settings["output"])
    passages = held_out_corpus(world)[:14]
    config = parse_settings(RebuildConfig, settings, "the test")

    # 1. Without a server yet: all steps, and then none of them.
    write_corpus(settings, passages[:12])
    line, refused = rebuild_of(config, lambda _: None)
    assert "is current" in line
    assert refused == 0
    files = {name for name in output.files() if "lock" not in name}
    said: list[str] = []
    assert "nothing has changed" in rebuild_of(config, said.append)[0]
    assert all("done before" in text for text in said)
    assert {name for name in output.files() if "lock" not in name} == files

    with serving(application(settings), anywhere()) as url:
        live = parse_settings(RebuildConfig, {**settings, "serving": {**settings["serving"], "url": url}}, "the test")
        client = Client(url)
        with client.asking():
            client.wait_for("1")

            # 2. Of another corpus only what is new is computed, and the server takes it up.
            write_corpus(settings, passages)
            planned = {one.step: one for one in plan(live).estimates}
            assert planned["build"].count == 14
            assert (planned["build"].seconds or 0) > 0
            rebuild_of(live, lambda _: None)
            first, second = map(Versions(output).read, Versions(output).ids())
            assert first.places["bank"] == second.places["bank"]
            assert (first.bank_version, second.bank_version) == (1, 2), "of one bank: twelve gradients were there"
            with BankReader(second.places_in(output)["bank"]) as bank:
                assert len(bank) == 14
            everyone = {passage.id for passage in passages}
            assert served(settings, everyone) == (2, everyone)
            client.wait_for("2")

            # 3. Back, and on to a third one, of which the second is neither the version before nor in use.
            roll_back(output, lambda version: serve(live, version))
            assert served(settings, everyone) == (1, {passage.id for passage in passages[:12]})
            client.wait_for("1")
            write_corpus(settings, passages[:13])
            rebuild_of(live, lambda _: None)
            client.wait_for("3")

            # 4. It goes, with its index; what the server answers from and can go back to stays.
            gone = prune(output, 1, in_use(live.serving, said.append)).gone
            assert gone.versions == (second.id,)
            assert gone.banks == {second.places["bank"]: (2,)}
            assert second.places["index"] in gone.places
            assert versions(Storage(second.places_in(output)["bank"])) == [1, 3]
            roll_back(output, lambda version: serve(live, version))
            client.wait_for("1")
    assert set(client.statuses) == {200}, "no request has failed"
    assert [version for version, _ in groupby(client.answers, key=itemgetter(0))] == ["1", "2", "1", "3", "1"]


def write_corpus(settings: dict[str, Any], passages: Sequence[Passage]) -> None:
    folder, _, name = settings["corpus"].rpartition("/")
    Storage(folder).write(name, encode_passages(passages))


def application(settings: dict[str, Any]) -> ServeConfig:
    """A server that follows what rebuilds make current."""
    places = settings["serving"]
    return ServeConfig(
        meta_init=settings["meta_init"],
        bank="none",
        index=places["collection"],
        releases=places["releases"],
        embedded=True,
        follow_seconds=0.3,
    )


def served(settings: dict[str, Any], ids: set[str]) -> tuple[int | None, set[str]]:
    """The bank's version that servers are told to answer from, and which of these passages their index has."""
    (release,) = read_releases(application(settings)).releases
    retriever = open_retriever(settings["serving"]["collection"])
    known = retriever.known(sorted(ids))
    retriever.close()
    return release.bank_version, set(known)
