"""Filling a bank with Ray Data: the same whatever the workers, quarantine for bad lines, any URI."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs import build_bank, index_corpus
from ray_jobs.cluster import cluster
from regrad.bank.reader import BankReader
from regrad.config import BankConfig, BuildConfig, IndexConfig, ModelConfig, WorkersConfig, builtin_config
from regrad.corpus import Passage, encode_passages, read_passages
from regrad.errors import BankError, ClusterError, CorpusError, MetaInitError
from regrad.lab.files import held_out_corpus
from regrad.lab.world import World
from regrad.language_model.loading import load_language_model
from regrad.meta_init import MetaInit, random_meta_init
from regrad.settings import load_settings
from regrad.storage import Storage
from tests.integration.conftest import search


@pytest.fixture(scope="module", autouse=True)
def local_cluster(s3: str) -> Iterator[None]:
    """Started after the S3 server, whose address and keys the workers inherit."""
    with cluster():
        yield


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


def test_one_and_two_workers_make_the_same_bank(meta_init_path: str, corpus: str, tmp_path: Path) -> None:
    one = build_bank.build(config(meta_init_path, corpus, str(tmp_path / "one"), workers=1))
    two = build_bank.build(config(meta_init_path, corpus, str(tmp_path / "two"), workers=2))
    assert one == two
    assert one.passages == 90
    assert len(one.shards) == 3
    assert one.fingerprint == MetaInit.load(meta_init_path).fingerprint


def test_bad_lines_go_to_quarantine_and_stop_nothing(meta_init_path: str, tmp_path: Path) -> None:
    lines = ['{"id": "a", "title": "T", "text": "words here"}', "not json", '{"id": "b", "title": "T", "text": " "}']
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join([*lines, '{"title": "no id", "text": "x"}', '{"id": "c", "text": "untitled"}']) + "\n")
    manifest = build_bank.build(config(meta_init_path, str(path), str(tmp_path / "bank")))
    assert (manifest.passages, manifest.quarantined) == (2, 3)
    listed = [json.loads(line) for line in (tmp_path / "bank" / manifest.quarantine).read_text().splitlines()]
    reasons = sorted(item["reason"].split(":")[0] for item in listed)
    assert reasons == ["empty text", "not a passage", "not a passage"]
    assert sorted(BankReader(str(tmp_path / "bank")).passage_ids) == ["a", "c"]


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
    whole = build_bank.build(config(meta_init_path, corpus, str(tmp_path / "whole")))
    assert build_bank.build(config(meta_init_path, f"{s3}/parts", str(tmp_path / "parted"))) == whole


def test_a_bad_row_is_quarantined_and_a_damaged_file_is_named(meta_init_path: str, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.tsv").write_text("7\tonly two columns\n8\twords here\tT\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "beir", "text": "words here"}\n'))
    manifest = build_bank.build(config(meta_init_path, str(folder), str(tmp_path / "bank")))
    assert (manifest.passages, manifest.quarantined) == (2, 1)
    [bad] = [json.loads(line) for line in (tmp_path / "bank" / manifest.quarantine).read_text().splitlines()]
    assert bad["id"] == "7\tonly two columns"
    assert bad["reason"].startswith("not a passage: ") and "found 2" in bad["reason"]
    (folder / "b.jsonl.gz").write_bytes((folder / "b.jsonl.gz").read_bytes()[:-9])
    with pytest.raises(CorpusError, match=r"b\.jsonl\.gz cannot be read: .*copy it or make it again$"):
        build_bank.build(config(meta_init_path, str(folder), str(tmp_path / "bank")))


def test_what_cannot_be_built_is_refused(meta_init_path: str, corpus: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="does not exist"):
        build_bank.build(config(meta_init_path, str(tmp_path / "none"), str(tmp_path / "bank")))
    with pytest.raises(MetaInitError, match="there is no MetaInit"):
        build_bank.build(config(str(tmp_path), corpus, str(tmp_path / "bank")))
    with pytest.raises(ClusterError, match="this machine has"):
        build_bank.build(config(meta_init_path, corpus, str(tmp_path / "bank"), workers=500))
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"id": "a", "title": "T", "text": "x y"}\n' * 2)
    with pytest.raises(BankError, match="'a' occurs more than once"):
        build_bank.build(config(meta_init_path, str(twice), str(tmp_path / "bank")))
    assert not (tmp_path / "bank" / "CURRENT").exists()


def test_bank_meta_init_corpus_and_index_on_s3(s3: str, meta_init_path: str, corpus: str, tmp_path: Path) -> None:
    """Everything that a cluster shares may be in an object store; the bank there is the one on disk, byte for byte."""
    MetaInit.load(meta_init_path).save(f"{s3}/meta-init")
    Storage(f"{s3}/data").write("corpus.jsonl", Path(corpus).read_bytes())
    remote = build_bank.build(config(f"{s3}/meta-init", f"{s3}/data/corpus.jsonl", f"{s3}/bank"))
    local = build_bank.build(config(meta_init_path, corpus, str(tmp_path / "bank")))
    assert remote == local
    ids = ["les-dripen", *BankReader(str(tmp_path / "bank")).passage_ids[:3]]
    assert BankReader(f"{s3}/bank").read(ids).equal(BankReader(str(tmp_path / "bank")).read(ids))
    index_corpus.run(IndexConfig(corpus=f"{s3}/data/corpus.jsonl", output=f"{s3}/index"))
    assert search(f"{s3}/index", "Where was Les Dripen born?", 1) == ["les-dripen"]


def test_a_line_ends_at_a_newline_only_and_odd_bytes_are_quarantined(meta_init_path: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    good = json.dumps({"id": "u", "title": "T", "text": "one\u2028two\u0085three"}, ensure_ascii=False).encode()
    lines = [good, b'{"id": "x", "text": "\xff"}', b"[" * 100_000, b'{"id": "s", "text": "\\ud800"}']
    path.write_bytes(b"\n".join(lines) + b"\n")
    manifest = build_bank.build(config(meta_init_path, str(path), str(tmp_path / "bank")))
    assert (manifest.passages, manifest.quarantined) == (1, 3)
    assert BankReader(str(tmp_path / "bank")).passage_ids == ["u"]
