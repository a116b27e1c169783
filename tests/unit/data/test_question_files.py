"""Files of questions, whatever their format: checksums, compression, ids, samples, and what cannot be read."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrad.data.question_sets import (
    PUBLISHED,
    READERS,
    QuestionSetConfig,
    published_checksum,
    read_questions,
)
from regrad.errors import ConfigError, EvaluationError
from regrad.settings import parse_settings
from tests.tools.refusals import refused
from tests.unit.data.test_question_sets import HOTPOT, SAMPLED, lines, read, write


@pytest.mark.parametrize("name", ["q.jl", "q.jsonlines", "q.json", "q.txt", "q.ndjson"])
def test_one_question_is_a_file_of_questions(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps({"id": "1", "question": "Q", "answer": "a"}))
    config = QuestionSetConfig(name="one", path=str(tmp_path / name), format="jsonl")
    assert [question.id for question in read_questions(config)] == ["1"]


@pytest.mark.parametrize("format_", sorted(READERS))
@pytest.mark.parametrize("name", ["e.json", "e.jsonl", "e.csv"])
def test_an_empty_file_holds_no_questions(tmp_path: Path, format_: str, name: str) -> None:
    with refused(EvaluationError, "no_questions", uri=str(tmp_path / name)):
        read(write(tmp_path / name, "\n"), format_)


def test_a_wrong_checksum_names_both(tmp_path: Path) -> None:
    path = write(tmp_path / "set.json", [SAMPLED])
    right, wrong = hashlib.sha256(path.read_bytes()).hexdigest(), "0" * 64
    assert len(read(path, "data-aug", sha256=right)) == 1
    with refused(EvaluationError, "other_file", found=right, expected=wrong):
        read(path, "data-aug", sha256=wrong)
    assert len(read(path, "data-aug", sha256="any")) == 1
    with refused(ConfigError, "invalid"):
        parse_settings(QuestionSetConfig, {"name": "x", "path": "x", "sha256": "abc"}, "test")


@pytest.mark.parametrize(("format_", "name"), [(f, name) for f, names in PUBLISHED.items() for name in names])
def test_a_file_with_a_published_name_must_be_the_published_file(tmp_path: Path, format_: str, name: str) -> None:
    path = write(tmp_path / name, "[]")
    with refused(EvaluationError, "not_the_published_file", expected=PUBLISHED[format_][name]):
        read(path, format_, sha256=None)
    settings = QuestionSetConfig(name="x", path=f"s3://bucket/{name}", format=format_)
    assert re.fullmatch("[0-9a-f]{64}", published_checksum(settings) or "")
    assert published_checksum(settings.model_copy(update={"format": "jsonl"})) is None


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zip", "GZ"])
def test_a_published_file_is_checked_unpacked_and_a_stated_checksum_as_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    name, right = "hotpot_dev_distractor_v1.json", json.dumps([HOTPOT]).encode()
    monkeypatch.setitem(PUBLISHED["hotpotqa"], name, hashlib.sha256(right).hexdigest())
    path = tmp_path / f"{name}.{ending}"

    def store(data: bytes) -> str:
        path.write_bytes(packed(name, data, ending.lower()))
        return hashlib.sha256(path.read_bytes()).hexdigest()

    stored = store(right)
    assert len(read(path, "hotpotqa", sha256=None)) == len(read(path, "hotpotqa", sha256=stored)) == 1
    with refused(EvaluationError, "other_file", found=stored):
        read(path, "hotpotqa", sha256=hashlib.sha256(right).hexdigest())
    other = store(right + b"\n")
    found = hashlib.sha256(right + b"\n").hexdigest()
    with refused(EvaluationError, "not_the_published_file", found=found):
        read(path, "hotpotqa", sha256=None)
    for stated in ("any", other):
        assert len(read(path, "hotpotqa", sha256=stated)) == 1


def packed(name: str, data: bytes, ending: str) -> bytes:
    """Compressed, as a file with this ending is."""
    if ending != "zip":
        pack: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
        return pack[ending](data)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


def test_two_records_with_one_id_are_an_error(tmp_path: Path) -> None:
    with refused(EvaluationError, "duplicate_id", id="0", places=[1, 3]):
        read(write(tmp_path / "set.json", [SAMPLED, {**SAMPLED, "test_id": 1}, SAMPLED]), "data-aug")


def test_questions_without_ids_get_some_that_do_not_depend_on_their_place(tmp_path: Path) -> None:
    a, b = {"question": "A?", "answer": "1"}, {"question": "B?", "answer": "2"}
    forwards = read(write(tmp_path / "f.jsonl", lines(a, b, a)), "jsonl")
    backwards = read(write(tmp_path / "b.jsonl", lines(b, a, a)), "jsonl")
    assert {q.id: q.question for q in forwards} == {q.id: q.question for q in backwards}
    assert len({q.id for q in forwards}) == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with refused(EvaluationError, "not_found", uri=str(tmp_path / "none.json")):
        read(tmp_path / "none.json", "jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with refused(EvaluationError, "not_utf8"):
        read(tmp_path / "latin.jsonl", "jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"question": "x", "answer": "y"}' * 90)[:-9])
    (tmp_path / "no.json.zip").write_bytes(b"not an archive")
    for name in ("cut.jsonl.gz", "no.json.zip", ""):
        with refused(EvaluationError, "unreadable", uri=str(tmp_path / name)):
            read(tmp_path / name, "jsonl")


def test_compressed_lines(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl.gz").write_bytes(gzip.compress(lines({"question": "x", "answer": "y"}).encode()))
    assert [q.question for q in read(tmp_path / "own.jsonl.gz", "jsonl")] == ["x"]


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regrad.data.question_files.MAX_BYTES", 1000)
    (tmp_path / "own.jsonl.gz").write_bytes(gzip.compress(b" " * 1001))
    with refused(EvaluationError, "unpacks_to_too_much"):
        read(tmp_path / "own.jsonl.gz", "jsonl")
    write(tmp_path / "own.jsonl", " " * 1001)
    with refused(EvaluationError, "too_large"):
        read(tmp_path / "own.jsonl", "jsonl")


def numbered(path: Path, numbers: list[int]) -> Path:
    return write(path, lines(*({"id": str(i), "question": f"Q{i}", "answer": "a"} for i in numbers)))


def test_first_takes_the_beginning_or_all(tmp_path: Path) -> None:
    path = numbered(tmp_path / "own.jsonl", [3, 1, 2])
    assert [q.id for q in read(path, "jsonl", limit=2)] == ["3", "1"]
    assert [q.id for q in read(path, "jsonl", limit=9)] == ["3", "1", "2"]


@given(order=st.permutations(list(range(30))), small=st.integers(1, 10), more=st.integers(0, 10), seed=st.integers())
def test_a_sample_depends_on_ids_and_seed_alone(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], small: int, more: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("sample")
    one = read(numbered(folder / "one.jsonl", list(range(30))), "jsonl", sample=small, seed=seed)
    other = read(numbered(folder / "other.jsonl", order), "jsonl", sample=small + more, seed=seed)
    assert one == other[:small]
    assert len(other) == small + more


def test_samples_of_different_seeds_differ(tmp_path: Path) -> None:
    path = numbered(tmp_path / "own.jsonl", list(range(200)))
    drawn = [{q.id for q in read(path, "jsonl", sample=50, seed=seed)} for seed in (0, 1)]
    assert len(drawn[0]) == len(drawn[1]) == 50
    assert len(drawn[0] & drawn[1]) < 30  # 12.5 are expected
    assert [q.id for q in read(path, "jsonl", limit=3, sample=3)] != []
