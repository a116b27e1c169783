"""A bank: what is written is read back; what is damaged, foreign or half-written is never given out."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regrad.bank.codecs import CODECS, codec_for
from regrad.bank.config import CodecName
from regrad.bank.format import INDEX, SHARDS, read_manifest, table, versions
from regrad.bank.index import Lookup, encode_lookup, key_of
from regrad.bank.reader import BankReader
from regrad.bank.shards import write_shard
from regrad.bank.writer import commit
from regrad.data.passages import Passage
from regrad.errors import AtomDamaged, AtomNotFound, BankConflict, BankError, BankFormatError, FingerprintMismatch
from regrad.storage import Storage
from tests.tools.banks import FLOAT32, PASSAGES, SUBSPACE, atoms, fill, layout, writer
from tests.tools.refusals import refused


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize("codec", sorted(CODECS))
def test_atoms_are_read_back_by_passage_id(tmp_path: Path, prefix: str, codec: CodecName) -> None:
    uri = f"{prefix}{tmp_path}/bank"
    manifest = fill(uri, codec)
    bank = BankReader(uri, fingerprint="f" * 16)
    assert len(bank) == 7
    assert bank.passage_ids() == [p.id for p in PASSAGES]
    assert bank.manifest == manifest
    order = [5, 0, 3]
    found = bank.read([PASSAGES[i].id for i in order])
    # Not what was stored, within some error, but what its codec makes of it (test_codecs.py bounds the error).
    expected = codec_for(codec, SUBSPACE)
    torch.testing.assert_close(found, expected.decode(expected.encode(atoms()[order])))
    torch.testing.assert_close(bank.sum([PASSAGES[i].id for i in order]), found.sum(0))
    assert bank.sum([]).equal(torch.zeros(SUBSPACE.size))


def test_a_memory_file_system_works_like_any_other() -> None:
    fill("memory://bank-test")
    bank = BankReader("memory://bank-test")
    assert bank.read(["p1"]).shape == (1, SUBSPACE.size)
    assert fill("memory://bank-test").version == 2


def test_an_atom_of_another_text_is_not_given_out(tmp_path: Path) -> None:
    fill(str(tmp_path))
    bank = BankReader(str(tmp_path))
    assert bank.read([PASSAGES[2]]).equal(bank.read(["p2"]))
    with refused(AtomNotFound, "other_text", passage_id="p2"):
        bank.read([Passage("p2", "title 2", "a new text")])


def test_quarantined_passages_are_listed_and_have_no_atom(tmp_path: Path) -> None:
    manifest = fill(str(tmp_path))
    assert (manifest.passages, manifest.quarantined) == (7, 1)
    assert manifest.quarantine is not None
    listed = pq.read_table(tmp_path / manifest.quarantine.name).to_pylist()
    assert listed == [{"passage_id": "bad", "reason": "empty text"}]
    with refused(AtomNotFound, passage_id="bad"):
        BankReader(str(tmp_path)).read(["p0", "bad"])


def test_a_passage_that_gets_an_atom_leaves_the_quarantine(tmp_path: Path) -> None:
    fill(str(tmp_path))
    manifest = writer(str(tmp_path), layout(), [Passage("bad", "", "good now")], atoms(1)).commit()
    assert (manifest.passages, manifest.quarantined, manifest.quarantine) == (8, 0, None)


def test_another_meta_init_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    fill(str(tmp_path), fingerprint="a" * 16)
    with refused(FingerprintMismatch, bank="a" * 16, meta_init="b" * 16):
        BankReader(str(tmp_path), fingerprint="b" * 16)
    with refused(BankError, "other_layout", differs="fingerprint", found="a" * 16, wanted="b" * 16):
        fill(str(tmp_path), fingerprint="b" * 16)
    with refused(BankError, "other_layout", differs="codec", found="float32", wanted="int8"):
        fill(str(tmp_path), fingerprint="a" * 16, codec="int8")


def test_a_damaged_atom_is_an_error_and_the_others_are_read(tmp_path: Path) -> None:
    fill(str(tmp_path))
    bank = BankReader(str(tmp_path))
    place = bank.locate("p4")
    assert place is not None
    path = tmp_path / "shards" / place.shard
    data = bytearray(path.read_bytes())
    data[place.start + 10] ^= 1
    path.write_bytes(data)
    with refused(AtomDamaged, passage_id="p4"):
        bank.read(["p4"])
    found = bank.fetch(["p3", "p4", "p5", "nobody"])
    assert [item.record is not None for item in found] == [True, False, True, False]
    path.write_bytes(bytes(data[: place.start + 10]))
    with refused(AtomDamaged, passage_id="p4"):
        BankReader(str(tmp_path)).read(["p4"])
    path.unlink()
    assert "does not exist" in BankReader(str(tmp_path)).fetch(["p4"], seconds=5)[0].problem


def test_shards_without_a_commit_are_invisible(tmp_path: Path) -> None:
    fill(str(tmp_path))
    write_shard(Storage(str(tmp_path)), FLOAT32.encode(atoms() * 9))
    assert BankReader(str(tmp_path)).manifest.version == 1
    nothing = tmp_path / "new"
    write_shard(Storage(str(nothing)), FLOAT32.encode(atoms()))
    with refused(BankError, "not_found", uri=str(nothing)):
        BankReader(str(nothing))


def test_adding_replaces_what_is_there_and_old_versions_stay(tmp_path: Path) -> None:
    first = fill(str(tmp_path))
    added = [Passage("p2", "title 2", "new text"), Passage("q", "", "one more")]
    second = writer(str(tmp_path), layout(), added, atoms(2, seed=5)).commit()
    assert (second.version, second.parent, second.passages) == (2, 1, 8)
    assert first.label != second.label
    old, new = BankReader(str(tmp_path), version=1), BankReader(str(tmp_path))
    assert new.read(["p2", "q"]).equal(atoms(2, seed=5))
    assert old.read(["p2"]).equal(atoms()[2:3])
    assert new.read(["p3"]).equal(old.read(["p3"]))
    assert "q" not in old
    with refused(BankError, "version_not_found", version=7, versions=[1, 2]):
        BankReader(str(tmp_path), version=7)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    a, b = fill(str(tmp_path / "a")), fill(str(tmp_path / "b"))
    assert a == b
    assert a.label == b.label
    names = [{p.relative_to(tmp_path / x): p.read_bytes() for p in (tmp_path / x).rglob("*.*")} for x in "ab"]
    assert names[0] == names[1]


def test_a_repeated_id_is_refused(tmp_path: Path) -> None:
    with refused(BankError, "duplicate_id", passage_id="p0"):
        writer(str(tmp_path), layout(), [PASSAGES[0], PASSAGES[0]], atoms(2)).commit()
    with refused(BankError, "not_found"):
        read_manifest(Storage(str(tmp_path)))


def test_of_two_writers_one_commits_and_the_other_is_told_and_can_rebase(tmp_path: Path) -> None:
    fill(str(tmp_path))
    storage, base = Storage(str(tmp_path)), read_manifest(Storage(str(tmp_path)))
    slow = writer(str(tmp_path), layout(), [Passage("slow", "", "x")], atoms(1, 1))
    writer(str(tmp_path), layout(), [Passage("fast", "", "x")], atoms(1, 2)).commit()
    with refused(BankConflict, version=2):
        commit(storage, layout(), slow.change(), base)
    assert "slow" not in BankReader(str(tmp_path))
    assert slow.commit().version == 3
    bank = BankReader(str(tmp_path))
    assert bank.read(["slow", "fast"]).equal(torch.cat([atoms(1, 1), atoms(1, 2)]))


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    makers = [writer(str(tmp_path), layout(), [Passage(f"w{i}", "", "x")], atoms(1, i)) for i in range(8)]
    threads = [threading.Thread(target=maker.commit) for maker in makers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bank = BankReader(str(tmp_path))
    assert (len(bank), bank.manifest.version) == (8, 8)
    assert bank.passage_ids() == [f"w{i}" for i in range(8)]
    assert versions(Storage(str(tmp_path))) == list(range(1, 9))


def test_the_pointer_is_a_hint_and_may_be_late_or_lost(tmp_path: Path) -> None:
    """A writer that dies after its commit, or is slow with the pointer, has committed."""
    fill(str(tmp_path))
    late = (tmp_path / "CURRENT").read_bytes()
    writer(str(tmp_path), layout(), [Passage("q", "", "x")], atoms(1)).commit()
    (tmp_path / "CURRENT").write_bytes(late)
    assert BankReader(str(tmp_path)).manifest.version == 2
    (tmp_path / "CURRENT").write_text("garbage")
    assert BankReader(str(tmp_path)).manifest.version == 2
    (tmp_path / "CURRENT").unlink()
    assert BankReader(str(tmp_path)).manifest.version == 2


def test_a_shard_that_is_taken_away_before_the_commit_stops_it(tmp_path: Path) -> None:
    made = writer(str(tmp_path), layout(), PASSAGES, atoms())
    change = made.change()
    next((tmp_path / "shards").iterdir()).unlink()
    with refused(BankError, "shard_missing"):
        commit(Storage(str(tmp_path)), layout(), change, None)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    manifest = fill(str(tmp_path))
    lookup, index = tmp_path / manifest.parts[0].lookup.name, tmp_path / manifest.parts[0].index.name
    good = lookup.read_bytes()
    for bad in (good[:50], b"", b"x" * len(good), good[:-1]):
        lookup.write_bytes(bad)
        with refused(BankError, "lookup_damaged", file=str(lookup)):
            BankReader(str(tmp_path))
    lookup.unlink()
    with refused(BankError, "lookup_damaged", file=str(lookup)):
        BankReader(str(tmp_path))
    lookup.write_bytes(good)
    index.write_bytes(index.read_bytes()[:50])
    with refused(BankError, "damaged", file=manifest.parts[0].index.name):
        BankReader(str(tmp_path)).passage_ids()
    (tmp_path / "manifests" / "00000001.json").write_text("garbage")
    with refused(BankError, "damaged", file="manifests/00000001.json"):
        BankReader(str(tmp_path))


def test_a_codec_of_another_regrad_is_named_with_a_way_out(tmp_path: Path) -> None:
    fill(str(tmp_path))
    path = tmp_path / "manifests" / "00000001.json"
    path.write_text(path.read_text().replace('"float32"', '"ternary7"'))
    with refused(BankFormatError, "unknown_codec", codec="ternary7"):
        BankReader(str(tmp_path))


def test_a_newer_and_an_older_format_are_refused_with_a_way_out(tmp_path: Path) -> None:
    fill(str(tmp_path))
    path = tmp_path / "manifests" / "00000001.json"
    path.write_text(json.dumps({"format": 3, "what": "ever"}))
    with refused(BankFormatError, found=3, expected=2):
        BankReader(str(tmp_path))
    (tmp_path / "CURRENT").write_text('{"format": 1, "version": 1}')
    with refused(BankFormatError, found=1, expected=2):
        BankReader(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"codec": "bf16"},
        {"size": 3},
        {"record_bytes": 10**15},
        {"version": 2},
        {"parts": [{"index": {"name": "../../etc/passwd", "bytes": 1, "sha256": "0" * 64}}]},
        {"quarantine": {"name": "index/../../x.parquet", "bytes": 1, "sha256": "0" * 64}},
        {"subspace": {}},
    ],
    ids=str,
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    fill(str(tmp_path))
    path = tmp_path / "manifests" / "00000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with refused(BankError, "damaged"):
        BankReader(str(tmp_path))


class InMemory:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, start: int, end: int) -> bytes:
        return self.data[start:end]


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.text(min_size=1).filter(lambda s: s.encode("utf-8", "ignore").decode() == s), max_size=300), st.data()
)
def test_a_look_up_finds_exactly_what_was_put_in(ids: set[str], data: st.DataObject) -> None:
    ordered = sorted(ids)
    deleted = {name for name in ordered if data.draw(st.booleans())} if len(ordered) < 20 else set(ordered[::7])
    shards = [f"{i:032x}.safetensors" for i in range(3)]
    numbers = list(range(len(ordered)))
    columns = {
        "passage_id": ordered,
        "text_hash": [bytes([i % 256]) * 32 for i in numbers],
        "shard": [None if name in deleted else shards[i % 3] for i, name in enumerate(ordered)],
        "row": [i * 7 for i in numbers],
        "crc32": [i * 11 for i in numbers],
    }
    listed = {"shard": shards, "rows": [9] * 3, "offset": [64, 128, 192], "bytes": [1] * 3, "sha256": ["0"] * 3}
    encoded = encode_lookup(table(INDEX, columns), table(SHARDS, listed))
    lookup = Lookup(InMemory(encoded), len(encoded), "here")
    for i, name in enumerate(ordered):
        entry = lookup.find(key_of(name))
        assert entry is not None
        if name in deleted:
            assert entry.shard is None
            continue
        assert entry.shard is not None
        assert (lookup.shard(entry.shard)[0], entry.row, entry.crc32) == (shards[i % 3], i * 7, i * 11)
        assert entry.belongs_to(f"{i % 256:02x}" * 32)
    assert lookup.find(b"\xff" * 8) is None


def test_a_look_up_file_takes_less_than_24_bytes_a_passage() -> None:
    count = 50_000
    columns = {
        "passage_id": [f"passage {i}" for i in range(count)],
        "text_hash": [bytes(32)] * count,
        "shard": pa.DictionaryArray.from_arrays(
            np.arange(count, dtype=np.int32) // 1000, [f"{i:032x}.s" for i in range(50)]
        ),
        "row": np.arange(count) % 1000,
        "crc32": np.arange(count),
    }
    listed = [f"{i:032x}.s" for i in range(50)]
    shards = {"shard": listed, "rows": [1000] * 50, "offset": [64] * 50, "bytes": [1] * 50, "sha256": ["0"] * 50}
    assert len(encode_lookup(table(INDEX, columns), table(SHARDS, shards))) / count < 24
