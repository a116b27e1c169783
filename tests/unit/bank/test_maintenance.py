"""The life of a bank: deleting is forgetting, compact and gc remove the bytes, verify names what is damaged."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regrad.bank.builder import BlockBuilder, assemble
from regrad.bank.inspect import diff, info, passage_info
from regrad.bank.maintenance import compact, delete, gc
from regrad.bank.reader import BankReader
from regrad.bank.shards import write_shard
from regrad.bank.verify import damaged_manifests, drop_lost, verify
from regrad.bank.writer import Change, commit
from regrad.data.passages import Passage
from regrad.errors import AtomDamaged, AtomNotFound, BankError, StorageError
from regrad.storage import Storage
from tests.tools.banks import FLOAT32, PASSAGES, atoms, fill, layout, writer
from tests.tools.refusals import refused


def holds(folder: Path, data: bytes) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and data in path.read_bytes()]


def test_a_deleted_atom_cannot_be_had_from_any_version(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    pinned = BankReader(uri, version=1)
    manifest = delete(uri, ["p3", "p3", "p6"])
    assert (manifest.version, manifest.passages) == (2, 5)
    for version in (None, 1, 2):
        bank = BankReader(uri, version=version)
        assert bank.passage_ids() == ["p0", "p1", "p2", "p4", "p5"]
        with refused(AtomNotFound, "deleted", passage_id="p3"):
            bank.read(["p3"])
        assert bank.read(["p4"]).equal(atoms()[4:5])
    assert pinned.manifest.version == 1
    with refused(AtomNotFound, passage_ids=["p3"]):
        delete(uri, ["p0", "p3"])
    assert BankReader(uri).manifest.version == 2


def test_after_compact_and_gc_the_bytes_are_gone_and_info_says_so(tmp_path: Path) -> None:
    uri, secret = str(tmp_path), FLOAT32.encode(atoms())[3].numpy().tobytes()
    fill(uri)
    assert len(holds(tmp_path, secret)) == 1
    assert info(uri).dead_records == 0
    delete(uri, ["p3"])
    assert len(holds(tmp_path, secret)) == 1
    assert info(uri).dead_records == 1
    assert passage_info(uri, "p3").remains
    compact(uri)
    removed = gc(uri)
    assert removed.versions == (1, 2)
    assert holds(tmp_path, secret) == []
    assert holds(tmp_path, b"p3") == []
    found, passage = info(uri), passage_info(uri, "p3")
    assert (found.passages, found.records_on_disk, found.dead_records, found.versions) == (6, 6, 0, [3])
    assert (passage.shard, passage.remains, passage.forgotten_in) == (None, [], 2)
    bank = BankReader(uri)
    rest = [i for i in range(7) if i != 3]
    assert bank.read([f"p{i}" for i in rest]).equal(atoms()[rest])
    assert verify(uri) == []


def test_a_lost_shard_does_not_hide_a_deleted_atom(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    place = BankReader(uri).locate("p0")
    delete(uri, ["p3"])
    assert place is not None
    (tmp_path / "shards" / place.shard).unlink()
    found = info(uri)
    assert (found.passages, found.records_on_disk, found.dead_records) == (6, 4, 1)


def test_atoms_of_a_version_with_larger_or_smaller_records_are_counted_too(tmp_path: Path) -> None:
    uri, base = str(tmp_path), fill(str(tmp_path), "int4")
    other = writer(uri, layout("float32"), PASSAGES[:2], atoms()[:2])
    commit(Storage(uri), layout("float32"), other.change(), base, fresh=True)
    found = info(uri)
    assert (found.records_on_disk, found.dead_records) == (9, 7)
    assert info(uri, 1).dead_records == 7
    gc(uri)
    assert (info(uri).records_on_disk, info(uri).dead_records) == (2, 0)


def test_a_damaged_header_does_not_hide_a_deleted_atom(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    place = BankReader(uri).locate("p3")
    delete(uri, ["p3"])
    assert place is not None
    shard = tmp_path / "shards" / place.shard
    shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])
    assert (info(uri).dead_records, info(uri).missing_records) == (1, 0)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert (info(uri).dead_records, info(uri).missing_records) == (1, 1)


def test_abandoned_builds_and_files_of_dead_writers_are_counted_and_go(tmp_path: Path) -> None:
    uri, storage = str(tmp_path), Storage(str(tmp_path))
    fill(uri)

    def extract(passages: Sequence[Passage]) -> list[tuple[Tensor | None, str]]:
        return [(record, "") for record in FLOAT32.encode(atoms(len(passages), seed=9))]

    BlockBuilder(storage, {"of": "a build"}, extract, None).build(PASSAGES[:2])
    (tmp_path / "shards" / ".new.tmp").write_bytes(b"half a shard")
    found = info(uri)
    assert (found.dead_records, found.dead_of_builds, found.dead_of_nobody) == (3, 2, 1)
    gc(uri)
    assert info(uri).dead_of_builds == 2
    gc(uri, abandon=True)
    assert (info(uri).dead_of_builds, info(uri).dead_of_nobody) == (0, 1)
    gc(uri, grace_seconds=0)
    assert (info(uri).dead_records, info(uri).records_on_disk) == (0, 7)


def test_a_passage_that_only_an_older_version_has_can_be_forgotten(tmp_path: Path) -> None:
    uri, base = str(tmp_path), fill(str(tmp_path))
    commit(Storage(uri), layout(), Change(removed=["p3"]), base)
    assert BankReader(uri, version=1).read(["p3"]).equal(atoms()[3:4])
    assert delete(uri, ["p3", "p5"]).passages == 5
    for version in (1, 2, 3):
        assert "p3" not in BankReader(uri, version=version)
    with refused(AtomNotFound, passage_ids=["p3"]):
        delete(uri, ["p3"])


def test_what_was_deleted_is_known_without_reading_atoms(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    delete(uri, ["p3"])
    for version in (1, None):
        told = BankReader(uri, version=version).deletions(["p2", "p3", "never"])
        assert [item.deleted for item in told] == [False, True, False]
        assert all(item.record is None for item in told)


def test_a_refused_passage_can_be_forgotten(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    manifest = delete(uri, ["bad"])
    assert (manifest.passages, manifest.quarantined) == (7, 0)
    assert BankReader(uri).was_deleted("bad")
    gc(uri)
    assert [path for path in tmp_path.rglob("quarantine/*") if path.is_file()] == []
    assert verify(uri) == []


def test_a_deleted_passage_can_come_back_in_a_new_version_only(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    delete(uri, ["p3"])
    writer(uri, layout(), [PASSAGES[3]], atoms(1, seed=9)).commit()
    assert BankReader(uri).read(["p3"]).equal(atoms(1, seed=9))
    for version in (1, 2):
        with refused(AtomNotFound, "deleted", passage_id="p3"):
            BankReader(uri, version=version).read(["p3"])


def test_everything_can_be_deleted(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    manifest = delete(uri, [passage.id for passage in PASSAGES])
    assert (manifest.passages, len(BankReader(uri))) == (0, 0)
    assert BankReader(uri).passage_ids() == []
    assert compact(uri).passages == 0
    gc(uri)
    assert info(uri).records_on_disk == 0
    writer(uri, layout(), PASSAGES[:1], atoms(1)).commit()
    assert BankReader(uri).passage_ids() == ["p0"]


def test_compact_puts_small_shards_and_parts_together_and_keeps_every_byte(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    for i in range(5):
        writer(uri, layout(), [Passage(f"q{i}", "", "x")], atoms(1, i + 1)).commit()
    before = BankReader(uri)
    ids = before.passage_ids()
    assert info(uri).shards == 8
    manifest = compact(uri)
    after = BankReader(uri)
    assert (len(manifest.parts), info(uri).shards) == (1, 1)
    assert after.read(ids).equal(before.read(ids))
    assert compact(uri) == manifest
    found = diff(uri, 1)
    assert (found.added, found.removed, found.changed, found.moved) == ([f"q{i}" for i in range(5)], [], [], 7)


def test_a_deleted_atom_goes_from_a_shard_that_other_ids_use_too(tmp_path: Path) -> None:
    """The same atoms added again under other ids are the same shard: its rows have two passages each."""
    uri, secret = str(tmp_path), FLOAT32.encode(atoms())[0].numpy().tobytes()
    for prefix in "ab":
        twins = [Passage(f"{prefix}{i}", "", str(i)) for i in range(3)]
        writer(uri, layout(), twins, atoms()[:3]).commit()
    assert info(uri).shards == 1
    delete(uri, ["a0", "b0"])
    compact(uri)
    gc(uri)
    assert holds(tmp_path, secret) == []
    assert BankReader(uri).read(["a1", "b1"]).equal(atoms()[[1, 1]])


def test_compact_refuses_to_copy_a_damaged_atom(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    flip(tmp_path, BankReader(uri), "p4")
    with refused(AtomDamaged, passage_id="p4"):
        compact(uri)
    delete(uri, ["p4"])
    assert compact(uri).passages == 6


def test_gc_keeps_what_somebody_may_need(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    delete(uri, ["p1"])
    (tmp_path / "notes.txt").write_text("mine")
    write_shard(Storage(uri), FLOAT32.encode(atoms() * 9))
    assert gc(uri, keep=2).files == ()
    assert gc(uri, keep=1, dry_run=True).versions == (1,)
    assert BankReader(uri, version=1).manifest.version == 1
    removed = gc(uri, keep=1)
    assert not [name for name in removed.files if name.startswith("shards/")]
    with refused(BankError, "version_not_found", version=1, versions=[2]):
        BankReader(uri, version=1)
    assert BankReader(uri).read(["p0", "p2"]).equal(atoms()[[0, 2]])
    old = time.time() - 7200
    for path in tmp_path.rglob("*"):
        os.utime(path, (old, old))
    assert len(gc(uri).files) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with refused(BankError, "keeps_no_version"):
        gc(uri, keep=0)
    assert verify(uri) == []


def test_gc_is_not_stopped_by_an_old_version_that_is_damaged(tmp_path: Path) -> None:
    uri = str(tmp_path)
    lost = fill(uri).parts[0].shard_list.name
    delete(uri, ["p0", "p1", "p2"])
    (tmp_path / lost).write_bytes(b"PAR1")
    assert gc(uri).versions == (1,)
    assert info(uri).versions == [2]
    writer(uri, layout(), PASSAGES[:1], atoms(1)).commit()
    (tmp_path / "manifests/00000002.json").write_text("{")
    assert gc(uri).versions == (2,)
    assert verify(uri) == []


def flip(folder: Path, bank: BankReader, passage_id: str) -> None:
    place = bank.locate(passage_id)
    assert place is not None
    path = folder / "shards" / place.shard
    data = bytearray(path.read_bytes())
    data[place.start + 5] ^= 4
    path.write_bytes(data)


def test_verify_names_every_damaged_file_and_the_passages_lost_with_it(tmp_path: Path) -> None:
    uri = str(tmp_path)
    manifest = fill(uri)
    bank = BankReader(uri)
    assert verify(uri) == []
    flip(tmp_path, bank, "p4")
    (damage,) = verify(uri)
    assert damage.passages == ("p4",)
    assert damage.file.startswith("shards/")
    place = bank.locate("p0")
    assert place is not None
    (tmp_path / "shards" / place.shard).unlink()
    assert sorted(item.passages for item in verify(uri)) == [("p0", "p1", "p2"), ("p4",)]
    lookup = tmp_path / manifest.parts[0].lookup.name
    whole = lookup.read_bytes()
    lookup.write_bytes(b"x" + whole[1:])
    assert [item.problem for item in verify(uri) if "lookup" in item.file] == ["its checksum does not match"]
    assert "it was made again" in next(item.problem for item in verify(uri, repair=True) if "lookup" in item.file)
    assert lookup.read_bytes() == whole
    (tmp_path / manifest.parts[0].index.name).write_bytes(b"PAR1")
    assert manifest.parts[0].index.name in [item.file for item in verify(uri)]
    (tmp_path / "manifests/00000001.json").write_text("{")
    assert [item.file for item in damaged_manifests(uri)] == ["manifests/00000001.json"]


def test_a_store_that_refuses_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is listed as lost may be deleted next: a store that is away must not look like a bank that is lost."""
    uri = str(tmp_path)
    fill(uri)
    read = Storage.read

    def refuse(self: Storage, name: str, start: int | None = None, end: int | None = None) -> bytes:
        if name.startswith("shards/"):
            raise StorageError(f"cannot read {name}", code="refused") from PermissionError()
        return read(self, name, start, end)

    monkeypatch.setattr(Storage, "read", refuse)
    with refused(StorageError, "refused"):
        verify(uri)


def test_lost_atoms_are_dropped_for_a_build_to_compute_them_again(tmp_path: Path) -> None:
    uri, storage = str(tmp_path), Storage(str(tmp_path))
    base = fill(uri)
    flip(tmp_path, BankReader(uri), "p4")
    computed: list[str] = []

    def extract(passages: Sequence[Passage]) -> list[tuple[Tensor | None, str]]:
        computed.extend(passage.id for passage in passages)
        return [(record, "") for record in FLOAT32.encode(atoms()[4:5])]

    BlockBuilder(storage, {}, extract, base).build(PASSAGES)
    assert computed == []
    dropped = drop_lost(uri, verify(uri))
    assert dropped is not None
    assert (dropped.passages, BankReader(uri).was_deleted("p4")) == (6, False)
    assert drop_lost(uri, verify(uri)) is None
    built = BlockBuilder(storage, {}, extract, dropped).build(PASSAGES)
    assert computed == ["p4"]
    commit(storage, layout(), assemble(storage, built, dropped, whole=True), dropped)
    assert BankReader(uri).read(["p4"]).equal(atoms()[4:5])
    compact(uri)
    assert verify(uri) == []


def test_a_passage_can_be_looked_for(tmp_path: Path) -> None:
    fill(str(tmp_path))
    found = passage_info(str(tmp_path), "p2")
    assert (found.row, found.text_hash) == (2, PASSAGES[2].text_hash)
    assert passage_info(str(tmp_path), "bad").quarantined == "empty text"
    assert torch.equal(BankReader(str(tmp_path)).read(["p2"]), atoms()[2:3])
