"""A corpus that changes in an object store: indexes and bank go together, and a server follows the change."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ray_jobs import build_bank, index_corpus
from regrad.bank.config import BankConfig, BuildConfig
from regrad.bank.reader import BankReader
from regrad.cli.main import regrad
from regrad.data.passages import Passage, encode_passages
from regrad.errors import PassageNotFound, RetrievalError
from regrad.lab.files import held_out_corpus
from regrad.lab.world import World
from regrad.meta_init import random_meta_init
from regrad.methods.base import BankNeed
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from regrad.retrieval.collection import read_version
from regrad.retrieval.config import DenseConfig, EncoderConfig, IndexConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.settings import WorkersConfig, builtin_config, load_settings
from regrad.storage import Storage
from serve_app.config import ServeConfig
from serve_app.evidence import RetrieverDeployment
from serve_app.messages import Ask, Release, Retrieved, RoutedAsk
from tests.tools.encoders import random_transformer
from tests.tools.patience import Deadline
from tests.tools.refusals import refused

pytestmark = pytest.mark.usefixtures("local_cluster")


@pytest.fixture(scope="module")
def passages(world: World) -> list[Passage]:
    return held_out_corpus(world)[:24]


@pytest.fixture(scope="module")
def collection(s3: str, tmp_path_factory: pytest.TempPathFactory, passages: list[Passage]) -> str:
    """The first 20 passages: an index and a bank in the store, and a collection of both."""
    folder = tmp_path_factory.mktemp("collection")
    lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    random_meta_init(lm, 1.0).save(f"{s3}/c/meta-init")
    (folder / "corpus.jsonl").write_bytes(encode_passages(passages[:20]))
    corpus, workers = str(folder / "corpus.jsonl"), WorkersConfig(workers=1)
    index_corpus.run(IndexConfig(corpus=corpus, output=f"{s3}/c/index"))
    into = BankConfig(uri=f"{s3}/c/bank", codec="bf16")
    build_bank.run(BuildConfig(meta_init=f"{s3}/c/meta-init", corpus=corpus, bank=into, cluster=workers))
    parts = ["--index", f"{s3}/c/index", "--bank", f"{s3}/c/bank", "--meta-init", f"{s3}/c/meta-init"]
    assert "20 passages" in command("create", f"{s3}/c/all", *parts)
    return f"{s3}/c/all"


def command(*arguments: str) -> str:
    result = CliRunner().invoke(regrad, ["passages", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_additions_and_deletions_reach_index_bank_and_an_open_server(
    collection: str, s3: str, tmp_path: Path, passages: list[Passage]
) -> None:
    server = following(collection, s3)
    added = passages[20]
    assert added.id not in found(server, added)
    (tmp_path / "more.jsonl").write_bytes(encode_passages(passages[20:]))
    assert "24 passages" in command("add", collection, "--corpus", str(tmp_path / "more.jsonl"))
    wait_until(lambda: found(server, added)[0] == added.id)
    with BankReader(f"{s3}/c/bank") as bank:
        assert len(bank) == 24

    with refused(PassageNotFound, passage_ids=["never"]):
        command("delete", collection, added.id, "never")
    assert added.id in found(server, added), "all or none"
    command("delete", collection, added.id)
    wait_until(lambda: added.id not in found(server, added))
    with BankReader(f"{s3}/c/bank") as bank:
        assert added.id not in bank
        assert read_version(collection).bank.version == bank.manifest.version  # type: ignore[union-attr]
    command("delete", collection, added.id)  # again changes nothing, and is no error
    assert added.id not in found(server, added)
    server.index.close()


def test_a_deletion_that_was_interrupted_goes_on(
    collection: str, s3: str, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = passages[3]
    with monkeypatch.context() as patch:
        patch.setattr("ray_jobs.change_collection.delete", lambda uri, ids: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert CliRunner().invoke(regrad, ["passages", "delete", collection, gone.id]).exit_code != 0
    with BankReader(f"{s3}/c/bank") as bank:
        assert gone.id in bank
    server = following(collection, s3)
    assert gone.id not in found(server, gone), "the index comes first"
    server.index.close()
    command("delete", collection, gone.id)
    with BankReader(f"{s3}/c/bank") as bank:
        assert gone.id not in bank


def test_an_addition_that_fails_changes_nothing(collection: str, tmp_path: Path, passages: list[Passage]) -> None:
    before = read_version(collection)
    (tmp_path / "twice.jsonl").write_bytes(encode_passages([passages[5], passages[5]]))
    with refused(RetrievalError, "duplicate_id"):
        command("add", collection, "--corpus", str(tmp_path / "twice.jsonl"))
    assert read_version(collection) == before


def test_a_large_addition_to_a_dense_index_is_embedded_by_workers_to_the_vectors_of_one_process(
    s3: str, tmp_path: Path, passages: list[Passage]
) -> None:
    config = EncoderConfig(path=random_transformer(tmp_path))
    encoder, how, uri = Encoder(config, "cpu"), DenseConfig(encoder=config), f"{s3}/d/all"
    build_dense_index(passages, f"{s3}/d/index", encoder, how)
    command("create", uri, "--index", f"{s3}/d/index")
    many = [Passage(f"{n}", passages[n % 24].title, f"{passages[n % 24].text} {n}") for n in range(1100)]
    (tmp_path / "many.jsonl").write_bytes(encode_passages(many))
    corpus = ["--corpus", str(tmp_path / "many.jsonl"), "--set", "cluster.workers=2"]
    assert "1,124 passages" in command("add", uri, *corpus)
    build_dense_index(many, str(tmp_path / "alone"), encoder, how)
    (added,) = read_version(uri).segments[1].indexes
    for file in ("vectors.f32", "regrad-index.json"):
        assert Storage(f"{uri}/{added}").read(file) == (tmp_path / "alone" / file).read_bytes(), file
    assert not [name for name in Storage(uri).files() if ".parts" in name]


def following(collection: str, s3: str) -> RetrieverDeployment:
    """A retriever of the server, which looks at the collection all the time."""
    places = {"meta_init": f"{s3}/c/meta-init", "bank": f"{s3}/c/bank"}
    return RetrieverDeployment(ServeConfig.model_validate({**places, "index": collection, "follow_seconds": 0.1}))


def wait_until(done: Callable[[], bool]) -> None:
    """The server opens a new version behind its searches."""
    deadline = Deadline(20)
    while not done():
        assert not deadline.over
        time.sleep(0.05)


def found(server: RetrieverDeployment, passage: Passage) -> list[str]:
    release = Release("main", "", "", 1, "")
    (retrieved,) = server.retrieve([RoutedAsk(Ask(passage.text, "rag", k=5), release, True, BankNeed.NOTHING)])
    assert isinstance(retrieved, Retrieved)
    return [hit.passage.id for hit in retrieved.hits]
