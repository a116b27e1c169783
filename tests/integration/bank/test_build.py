"""Filling a bank with Ray Data: the same whatever the workers, quarantine for bad lines, any URI."""

from __future__ import annotations

import csv
import gzip
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from ray_jobs import build_bank, index_corpus
from ray_jobs.waiting import wait_for_room
from regrad.bank.config import BankConfig, BuildConfig
from regrad.bank.format import Manifest
from regrad.bank.reader import BankReader
from regrad.cli.main import regrad
from regrad.data.corpora import read_passages
from regrad.data.passages import Passage, encode_passages
from regrad.errors import BankError, ClusterError, CorpusError, MetaInitError, ModelError
from regrad.lab.files import held_out_corpus
from regrad.lab.world import World
from regrad.meta_init import MetaInit, random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from regrad.retrieval.config import IndexConfig
from regrad.settings import WorkersConfig, builtin_config, load_settings
from regrad.storage import Storage
from tests.integration.conftest import search
from tests.tools.patience import Deadline, patient
from tests.tools.refusals import refused

pytestmark = pytest.mark.usefixtures("local_cluster")


@pytest.fixture(scope="module")
def meta_init_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    path = str(tmp_path_factory.mktemp("m") / "raw")
    random_meta_init(lm, 1.0).save(path)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, world: World) -> str:
    path = tmp_path_factory.mktemp("c") / "corpus.jsonl"
    path.write_bytes(encode_passages(held_out_corpus(world)[:90]))
    return str(path)


def config(meta_init: str, corpus: str, uri: str, workers: int = 1) -> BuildConfig:
    bank = BankConfig(uri=uri, shard_passages=40)
    return BuildConfig(meta_init=meta_init, corpus=corpus, bank=bank, cluster=WorkersConfig(workers=workers))


def build(config: BuildConfig, add: bool = False) -> Manifest:
    return build_bank.build(config, add).manifest


def quarantined(bank: Path, manifest: Manifest) -> list[dict[str, str]]:
    assert manifest.quarantine is not None
    return [{"id": row["passage_id"], **row} for row in pq.read_table(bank / manifest.quarantine.name).to_pylist()]


def test_one_and_two_workers_make_the_same_bank(meta_init_path: str, corpus: str, tmp_path: Path) -> None:
    one = build(config(meta_init_path, corpus, str(tmp_path / "one"), workers=1))
    two = build(config(meta_init_path, corpus, str(tmp_path / "two"), workers=2))
    assert one == two
    assert one.passages == 90
    assert [part.shards for part in one.parts] == [3]
    assert one.fingerprint == MetaInit.load(meta_init_path).fingerprint


def test_two_builds_that_each_want_the_whole_cluster_both_finish(
    meta_init_path: str, corpus: str, tmp_path: Path
) -> None:
    """Whatever the workers of one hold, the other is not kept from reading its corpus: they share, or one waits."""
    cpus = int(ray.cluster_resources()["CPU"])

    def run(name: str) -> Manifest:
        return build(config(meta_init_path, corpus, str(tmp_path / name), workers=cpus))

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(run, ("first", "second"))
    assert first == second
    assert first.passages == 90


def test_a_job_without_room_says_so_and_goes_on_when_there_is_some(caplog: pytest.LogCaptureFixture) -> None:
    workers = WorkersConfig(workers=2, gpu=False)
    for _ in range(30):  # a probe that is just starting is left behind each time
        wait_for_room(workers)
    others = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    assert others.wait(patient(60))
    with ThreadPoolExecutor(1) as threads, caplog.at_level("INFO"):
        waiting = threads.submit(wait_for_room, workers)
        deadline = Deadline(60)
        while "are held by others" not in caplog.text:
            assert not deadline.over
            time.sleep(0.1)
        assert not waiting.done()
        remove_placement_group(others)
        waiting.result(patient(60))


def test_bad_lines_go_to_quarantine_and_stop_nothing(meta_init_path: str, tmp_path: Path) -> None:
    lines = ['{"id": "a", "title": "T", "text": "words here"}', "not json", '{"id": "b", "title": "T", "text": " "}']
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join([*lines, '{"title": "no id", "text": "x"}', '{"id": "c", "text": "untitled"}']) + "\n")
    manifest = build(config(meta_init_path, str(path), str(tmp_path / "bank")))
    assert (manifest.passages, manifest.quarantined) == (2, 3)
    reasons = sorted(item["reason"].split(":")[0] for item in quarantined(tmp_path / "bank", manifest))
    assert reasons == ["empty text", "not a passage", "not a passage"]
    assert sorted(BankReader(str(tmp_path / "bank")).passage_ids()) == ["a", "c"]


def write_parts(folder: Path, passages: Sequence[Passage]) -> None:
    """The passages in their order, in four files of four kinds, with some beside them that are none of the corpus."""
    zst, gz, tsv, parquet = (passages[i * 25 : (i + 1) * 25] for i in range(4))
    (folder / "2").mkdir(parents=True)
    with pa.OSFile(str(folder / "1.jsonl.zst"), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as file:
        file.write(encode_passages(zst))
    (folder / "2" / "a.jsonl.gz").write_bytes(gzip.compress(encode_passages(gz)))
    with open(folder / "2" / "b.tsv", "w", newline="") as table:
        rows = [(passage.text, passage.id, passage.title) for passage in tsv]
        csv.writer(table, "excel-tab").writerows([("text", "id", "title"), *rows])
    pq.write_table(pa.Table.from_pylist([asdict(passage) for passage in parquet]), folder / "3.parquet")
    (folder / "2" / "empty.jsonl").write_bytes(b"")
    (folder / "_SUCCESS").write_bytes(b"")


def test_a_directory_of_files_of_all_kinds_makes_the_bank_of_one_file(
    s3: str, meta_init_path: str, corpus: str, tmp_path: Path
) -> None:
    write_parts(tmp_path / "parts", list(read_passages(corpus)))
    Storage(f"{s3}/parts").fs.put(str(tmp_path / "parts"), f"{s3}/parts", recursive=True)
    whole = build(config(meta_init_path, corpus, str(tmp_path / "whole")))
    assert build(config(meta_init_path, f"{s3}/parts", str(tmp_path / "parted"))) == whole


def test_a_bad_row_is_quarantined_and_a_damaged_file_is_named(meta_init_path: str, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.tsv").write_text("7\tonly two columns\n8\twords here\tT\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "beir", "text": "words here"}\n'))
    manifest = build(config(meta_init_path, str(folder), str(tmp_path / "bank")))
    assert (manifest.passages, manifest.quarantined) == (2, 1)
    [bad] = quarantined(tmp_path / "bank", manifest)
    assert bad["id"] == "7\tonly two columns"
    assert bad["reason"].startswith("not a passage: ") and "found 2" in bad["reason"]
    (folder / "b.jsonl.gz").write_bytes((folder / "b.jsonl.gz").read_bytes()[:-9])
    with refused(CorpusError, "damaged", uri=str(folder / "b.jsonl.gz")):
        build(config(meta_init_path, str(folder), str(tmp_path / "bank")))


def test_what_cannot_be_built_is_refused(meta_init_path: str, corpus: str, tmp_path: Path) -> None:
    with refused(CorpusError, "not_found", uri=str(tmp_path / "none")):
        build(config(meta_init_path, str(tmp_path / "none"), str(tmp_path / "bank")))
    with refused(MetaInitError, "not_found", uri=str(tmp_path)):
        build(config(str(tmp_path), corpus, str(tmp_path / "bank")))
    with refused(ClusterError, "too_small", resource="CPU", expected=500):
        build(config(meta_init_path, corpus, str(tmp_path / "bank"), workers=500))
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text('{"id": "a", "title": "T", "text": " "}\n')
    with refused(BankError, "no_atoms", reason="empty text"):
        build(config(meta_init_path, str(nothing), str(tmp_path / "bank")))
    assert not (tmp_path / "bank" / "CURRENT").exists()


def test_a_worker_that_cannot_start_says_why_in_one_sentence(meta_init_path: str, corpus: str, tmp_path: Path) -> None:
    wrong = config(meta_init_path, corpus, str(tmp_path / "bank")).model_copy(update={"model_path": str(tmp_path)})
    with pytest.raises(ModelError):
        build(wrong)


def test_a_second_build_computes_what_is_new_and_drops_what_is_gone(
    meta_init_path: str, corpus: str, tmp_path: Path
) -> None:
    uri, lines = str(tmp_path / "bank"), Path(corpus).read_text().splitlines(keepends=True)
    first = build(config(meta_init_path, corpus, uri))
    assert build(config(meta_init_path, corpus, uri)) == first
    changed = tmp_path / "changed.jsonl"
    new = '{"id": "new", "title": "T", "text": "one more"}\n'
    changed.write_text("".join(lines[5:]) + new + lines[7])
    second = build(config(meta_init_path, str(changed), uri))
    assert (second.version, second.passages, second.quarantined) == (2, 86, 1)
    assert quarantined(tmp_path / "bank", second)[0]["reason"].startswith("duplicate id")
    added = tmp_path / "added.jsonl"
    added.write_text("".join(lines[:2]))
    third = build(config(meta_init_path, str(added), uri), add=True)
    assert (third.version, third.passages) == (3, 88)
    old, bank = BankReader(uri, version=1), BankReader(uri)
    kept = [passage_id for passage_id in old.passage_ids() if passage_id in bank]
    assert len(kept) == 87
    torch.testing.assert_close(bank.read(kept), old.read(kept), rtol=1e-4, atol=1e-6)  # batched otherwise: rounding
    assert list((tmp_path / "bank" / "builds").iterdir()) == []


def test_bank_meta_init_corpus_and_index_on_s3(s3: str, meta_init_path: str, corpus: str, tmp_path: Path) -> None:
    """Everything that a cluster shares may be in an object store; the bank there is the one on disk, byte for byte."""
    MetaInit.load(meta_init_path).save(f"{s3}/meta-init")
    Storage(f"{s3}/data").write("corpus.jsonl", Path(corpus).read_bytes())
    remote = build(config(f"{s3}/meta-init", f"{s3}/data/corpus.jsonl", f"{s3}/bank"))
    local = build(config(meta_init_path, corpus, str(tmp_path / "bank")))
    assert remote == local
    ids = ["les-dripen", *BankReader(str(tmp_path / "bank")).passage_ids()[:3]]
    assert BankReader(f"{s3}/bank").read(ids).equal(BankReader(str(tmp_path / "bank")).read(ids))
    index_corpus.run(IndexConfig(corpus=f"{s3}/data/corpus.jsonl", output=f"{s3}/index"))
    assert search(f"{s3}/index", "Where was Les Dripen born?", 1) == ["les-dripen"]


def test_a_line_ends_at_a_newline_only_and_odd_bytes_are_quarantined(meta_init_path: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    good = json.dumps({"id": "u", "title": "T", "text": "one\u2028two\u0085three"}, ensure_ascii=False).encode()
    lines = [good, b'{"id": "x", "text": "\xff"}', b"[" * 100_000, b'{"id": "s", "text": "\\ud800"}']
    path.write_bytes(b"\n".join(lines) + b"\n")
    manifest = build(config(meta_init_path, str(path), str(tmp_path / "bank")))
    assert (manifest.passages, manifest.quarantined) == (1, 3)
    assert BankReader(str(tmp_path / "bank")).passage_ids() == ["u"]


def test_adding_says_what_this_corpus_had_refused_not_what_others_had(
    meta_init_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit statuses of `regrad bank add` and `regrad build`."""
    uri, good, bad = str(tmp_path / "bank"), tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"id": "a", "title": "T", "text": "words here"}\n')
    bad.write_text('{"id": "b", "title": "T", "text": "more words"}\nnot json\n')

    def status(*verb: str, corpus: Path) -> int:
        settings = {"meta_init": meta_init_path, "corpus": corpus, "bank.uri": uri, "cluster.workers": 1}
        overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        with pytest.raises(SystemExit) as ended:
            regrad([*verb, *overrides], standalone_mode=False)
        return int(str(ended.value.code))

    assert status("bank", "add", corpus=bad) == 3
    assert status("bank", "add", corpus=good) == 0
    assert "1 quarantined" in capsys.readouterr().out, "of the bank"
    assert status("bank", "add", corpus=bad) == 3, "nothing is new, and the line is still bad"
    assert "1 passage of this corpus refused" in capsys.readouterr().err
    assert BankReader(uri).manifest.passages == 2
    assert status("build", corpus=bad) == 3
