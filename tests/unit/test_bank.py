"""A bank: what is written is read back; what is damaged, foreign or half-written is never given out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regrad.bank.codecs import CODECS, codec_for
from regrad.bank.manifest import Manifest, read_manifest
from regrad.bank.reader import BankReader
from regrad.bank.writer import IndexRow, commit, write_shard
from regrad.config import CodecName
from regrad.corpus import Passage
from regrad.errors import AtomNotFound, BankError, FingerprintMismatch
from regrad.language_model.subspace import Subspace
from regrad.storage import Storage

SUBSPACE = Subspace((("m", 5, 7), ("n", 7, 3)), 2, 2.0)
FLOAT32 = codec_for("float32", SUBSPACE)
PASSAGES = [Passage(f"p{i}", f"title {i}", f"text {i}") for i in range(7)]


def atoms() -> Tensor:
    return torch.randn(len(PASSAGES), SUBSPACE.size, generator=torch.Generator().manual_seed(0))


def fill(uri: str, codec: CodecName = "float32", fingerprint: str = "f" * 16, scale: float = 1.0) -> Manifest:
    storage, values, made = Storage(uri), atoms() * scale, codec_for(codec, SUBSPACE)
    rows = write_shard(storage, made, PASSAGES[:3], values[:3]) + write_shard(storage, made, PASSAGES[3:], values[3:])
    return commit(storage, fingerprint, codec, SUBSPACE, [*rows, IndexRow("bad", "", reason="empty text")])


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize("codec", sorted(CODECS))
def test_atoms_are_read_back_by_passage_id(tmp_path: Path, prefix: str, codec: CodecName) -> None:
    uri = f"{prefix}{tmp_path}/bank"
    manifest = fill(uri, codec)
    bank = BankReader(uri, fingerprint="f" * 16)
    assert len(bank) == 7
    assert sorted(bank.passage_ids) == [p.id for p in PASSAGES]
    assert bank.manifest == manifest
    order = [5, 0, 3]
    found = bank.read([PASSAGES[i].id for i in order])
    # Not what was stored, within some error, but what its codec makes of it (test_codecs.py bounds the error).
    expected = codec_for(codec, SUBSPACE)
    torch.testing.assert_close(found, expected.decode(expected.encode(atoms()[order])))
    torch.testing.assert_close(bank.sum([PASSAGES[i].id for i in order]), found.sum(0))


def test_a_memory_file_system_works_like_any_other() -> None:
    fill("memory://bank-test")
    assert BankReader("memory://bank-test").read(["p1"]).shape == (1, SUBSPACE.size)


def test_quarantined_passages_are_listed_and_have_no_atom(tmp_path: Path) -> None:
    manifest = fill(str(tmp_path))
    assert (manifest.passages, manifest.quarantined) == (7, 1)
    assert json.loads((tmp_path / manifest.quarantine).read_text()) == {"id": "bad", "reason": "empty text"}
    with pytest.raises(AtomNotFound, match="'bad'"):
        BankReader(str(tmp_path)).read(["p0", "bad"])


def test_another_meta_init_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    fill(str(tmp_path), fingerprint="a" * 16)
    with pytest.raises(FingerprintMismatch, match=f"{'a' * 16}.*{'b' * 16}"):
        BankReader(str(tmp_path), fingerprint="b" * 16)


def test_a_damaged_atom_is_an_error_and_the_others_are_read(tmp_path: Path) -> None:
    fill(str(tmp_path))
    bank = BankReader(str(tmp_path))
    shard, row, _ = bank._index["p4"]
    path = tmp_path / "shards" / shard
    data = bytearray(path.read_bytes())
    start = bank.manifest.shards[shard].offset + row * bank.manifest.record_bytes
    data[start + 10] ^= 1
    path.write_bytes(data)
    with pytest.raises(BankError, match="'p4'.*damaged"):
        bank.read(["p4"])
    assert bank.read(["p3", "p5"]).shape[0] == 2
    path.write_bytes(bytes(data[: start + 10]))
    with pytest.raises(BankError, match="'p4'.*damaged"):
        bank.read(["p4"])


def test_shards_without_a_commit_are_invisible(tmp_path: Path) -> None:
    fill(str(tmp_path))
    write_shard(Storage(str(tmp_path)), FLOAT32, PASSAGES, atoms() * 9)
    assert BankReader(str(tmp_path)).manifest.version == 1
    nothing = tmp_path / "new"
    write_shard(Storage(str(nothing)), FLOAT32, PASSAGES, atoms())
    with pytest.raises(BankError, match="there is no bank at"):
        BankReader(str(nothing))


def test_a_second_build_is_a_new_version_and_the_first_can_still_be_read(tmp_path: Path) -> None:
    first, second = fill(str(tmp_path)), fill(str(tmp_path), scale=2.0)
    assert (second.version, second.parent) == (2, 1)
    assert first.label != second.label
    old, new = BankReader(str(tmp_path), version=1), BankReader(str(tmp_path))
    torch.testing.assert_close(new.read(["p2"]), 2 * old.read(["p2"]))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    a, b = fill(str(tmp_path / "a")), fill(str(tmp_path / "b"))
    assert a == b
    assert a.label == b.label


def test_a_repeated_id_and_an_empty_result_are_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    rows = write_shard(storage, FLOAT32, [PASSAGES[0], PASSAGES[0]], atoms()[:2])
    with pytest.raises(BankError, match="'p0' occurs more than once"):
        commit(storage, "f", "float32", SUBSPACE, rows)
    with pytest.raises(BankError, match="no passage gave an atom; the first was refused because: empty text"):
        commit(storage, "f", "float32", SUBSPACE, [IndexRow("x", "", reason="empty text")])
    with pytest.raises(BankError, match="there is no bank"):
        read_manifest(storage)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    manifest = fill(str(tmp_path))
    index = tmp_path / manifest.index
    good = index.read_bytes()
    index.write_bytes(good[:50])
    with pytest.raises(BankError, match="index of the bank .* is damaged"):
        BankReader(str(tmp_path))
    index.write_bytes(good)
    (tmp_path / "manifests" / "00000001.json").unlink()
    with pytest.raises(BankError, match=r"lacks manifests/00000001.json"):
        BankReader(str(tmp_path))
    (tmp_path / "CURRENT").write_text("garbage")
    with pytest.raises(BankError, match="CURRENT is damaged"):
        BankReader(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"codec": "bf16"},
        {"size": 3},
        {"record_bytes": 10**15},
        {"index": "../../etc/passwd"},
        {"shards": {}},
        {"subspace": {}},
    ],
    ids=str,
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    fill(str(tmp_path))
    path = tmp_path / "manifests" / "00000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BankError, match="is damaged"):
        BankReader(str(tmp_path))
