"""Reading a corpus: the formats, which files there are, and passages without ids."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regrad.data.corpora import read_passages, read_raw
from regrad.data.files import corpus_files
from regrad.data.passages import Passage, encode_passages, passage_id
from regrad.errors import CorpusError
from tests.tools.refusals import refused

PASSAGES = [
    Passage("1", "Ada", 'Ada said "go",\tand went.'),
    Passage("2", "", "one\u2028two\u0085three"),
    Passage("x y", "Zoë", "Zoë's \U0001f600"),
]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def tsv(passages: list[Passage], header: str = "id\ttext\ttitle\n") -> bytes:
    """As DPR has it: every text and title quoted, quotes doubled."""
    rows = [[p.id, *('"{}"'.format(value.replace('"', '""')) for value in (p.text, p.title))] for p in passages]
    return (header + "".join("\t".join(row) + "\n" for row in rows)).encode()


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def read(path: Path, data: bytes) -> list[Passage]:
    path.write_bytes(data)
    return list(read_passages(str(path)))


def problems(path: Path, data: bytes) -> list[str]:
    """What is wrong with each record, decoded or not; the file's name taken out."""
    path.write_bytes(data)
    found = []
    for record in read_raw(str(path)):
        try:
            Passage.from_record(record.decode(), record.where)
            found.append("")
        except CorpusError as error:
            found.append(str(error).removeprefix(f"{path} "))
    return found


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", ["c.jsonl", "c.json-lines", "c.tsv"])
def test_text_formats_plain_and_compressed_give_the_same_passages(tmp_path: Path, name: str, ending: str) -> None:
    data = tsv(PASSAGES) if name.endswith("tsv") else encode_passages(PASSAGES)
    assert read(tmp_path / (name + ending), COMPRESS[ending](data)) == PASSAGES


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_a_compressed_file_of_several_parts_is_read_to_its_end(tmp_path: Path, ending: str) -> None:
    parts = [COMPRESS[ending](encode_passages([passage])) for passage in PASSAGES]
    assert read(tmp_path / f"c.jsonl{ending}", b"".join(parts)) == PASSAGES


def test_the_last_line_needs_no_newline_and_blank_lines_and_marks_of_order_are_skipped(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + encode_passages(PASSAGES[:2]).replace(b"\n", b"\r\n \n\n") + b'{"id": "e", "text": "x"}'
    assert [passage.id for passage in read(tmp_path / "c.jsonl", data)] == ["1", "2", "e"]


def test_beirs_records_are_passages(tmp_path: Path) -> None:
    record = {"_id": "doc1", "title": "T", "text": "x", "metadata": {"url": "u"}}
    assert read(tmp_path / "corpus.jsonl", json.dumps(record).encode()) == [Passage("doc1", "T", "x")]


@pytest.mark.parametrize(
    ("header", "row", "passage"),
    [
        ("", "7\twords\tT", Passage("7", "T", "words")),
        ("title\tid\ttext\n", "T\t7\twords", Passage("7", "T", "words")),
        ("_id\textra\ttext\r\n", "7\t?\twords\r", Passage("7", "", "words")),
        ("id\ttext\ttitle\n", '7\tsays "so" here\tT', Passage("7", "T", 'says "so" here')),
        ("id\ttext\ttitle\n", '7\t"two\n\nlines"\tT', Passage("7", "T", "two\n\nlines")),
    ],
    ids=["no header", "other order", "BEIR's id, no title, CRLF", "quotes within a field", "a field of lines"],
)
def test_the_columns_of_tsv(tmp_path: Path, header: str, row: str, passage: Passage) -> None:
    assert read(tmp_path / "c.tsv", f"{header}{row}\n".encode()) == [passage]


@pytest.mark.parametrize(
    "columns",
    [
        {"id": pa.array([1, 2]), "title": ["T", None], "text": ["a", "b"]},
        {"_id": ["1", "2"], "title": pa.array(["T", None]).dictionary_encode(), "text": pa.array([b"a", b"b"])},
        {"text": pa.array(["a", "b"], pa.large_string()), "id": pa.array([1, 2], pa.uint8()), "title": ["T", ""]},
    ],
)
def test_parquets_columns_and_types(tmp_path: Path, columns: dict[str, Any]) -> None:
    assert list(read_passages(parquet(tmp_path / "c.parquet", columns))) == [
        Passage("1", "T", "a"),
        Passage("2", "", "b"),
    ]


def test_parquet_is_read_in_order_over_row_groups(tmp_path: Path) -> None:
    columns = {"id": range(1000), "text": [f"text {i}" for i in range(1000)]}
    found = read_passages(parquet(tmp_path / "c.parquet", columns, row_group_size=70))
    assert [(passage.id, passage.text) for passage in found] == [(str(i), f"text {i}") for i in range(1000)]


def test_a_directory_is_its_files_by_path_but_hidden_ones_and_others(tmp_path: Path) -> None:
    names = ["b.jsonl", "a/z.tsv", "a.jsonl.gz", "[1]*?.jsonl", "é ü.jsonl", "deep/er/c.jsonl"]
    left_out = ["_SUCCESS", ".a.jsonl", "_b.jsonl", "README.md", "c.parquet.gz", ".git/a.jsonl", "_temporary/a.jsonl"]
    for name in names + left_out:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        data = encode_passages([Passage(name, "", "x")])
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    (tmp_path / "a/z.tsv").write_bytes(tsv([Passage("a/z.tsv", "", "x")]))
    expected = sorted(names)
    files = corpus_files(str(tmp_path))
    assert [os.path.relpath(file.uri, tmp_path) for file in files] == expected
    assert [file.bytes for file in files] == [(tmp_path / name).stat().st_size for name in expected]
    for uri in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}"):
        assert [passage.id for passage in read_passages(uri)] == expected
    assert [passage.id for passage in read_passages(f"{tmp_path}/[1]*?.jsonl")] == ["[1]*?.jsonl"]


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_glob_is_the_files_and_directories_that_match(tmp_path: Path, prefix: str) -> None:
    for name in ("part-1.jsonl", "part-2/a.jsonl", "part-2/_b.jsonl", "_c/c.jsonl", "other.jsonl", "part.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode_passages([Passage(name, "", "x")]))
    assert [p.id for p in read_passages(f"{prefix}{tmp_path}/part*")] == ["part-1.jsonl", "part-2/a.jsonl"]
    assert len(corpus_files(f"{prefix}{tmp_path}/**")) == 3
    with refused(CorpusError, "no_file", uri=f"{prefix}{tmp_path}/none*"):
        corpus_files(f"{prefix}{tmp_path}/none*")


def test_any_file_system_will_do() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe(
        {"/corpus/b.jsonl": encode_passages(PASSAGES[1:]), "/corpus/a.tsv.gz": gzip.compress(tsv(PASSAGES[:1]))}
    )
    try:
        for uri in ("memory://corpus", "memory://corpus/", "memory://corpus/*"):
            assert [file.uri for file in corpus_files(uri)] == ["memory://corpus/a.tsv.gz", "memory://corpus/b.jsonl"]
            assert list(read_passages(uri)) == PASSAGES
    finally:
        memory.rm("/corpus", recursive=True)


def test_a_corpus_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with refused(CorpusError, "not_found", uri=str(tmp_path / "c.jsonl")):
        corpus_files(str(tmp_path / "c.jsonl"))
    (tmp_path / "notes.txt").write_text("x")
    with refused(CorpusError, "no_file", uri=str(tmp_path)):
        corpus_files(str(tmp_path))
    with refused(CorpusError, "wrong_ending", uri=str(tmp_path / "notes.txt")):
        corpus_files(str(tmp_path / "notes.txt"))


def test_an_empty_file_is_fine_beside_others_and_an_empty_corpus_is_not(tmp_path: Path) -> None:
    for ending in COMPRESS:
        (tmp_path / f"a.jsonl{ending}").write_bytes(b"")
    (tmp_path / "b.tsv").write_text("id\ttext\ttitle\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"\n \n"))
    (tmp_path / "d.parquet").write_bytes(b"")
    parquet(tmp_path / "e.parquet", {"id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    with refused(CorpusError, "empty"):
        list(read_passages(str(tmp_path)))
    (tmp_path / "f.jsonl").write_bytes(encode_passages(PASSAGES))
    assert list(read_passages(str(tmp_path))) == PASSAGES


@pytest.mark.slow
def test_the_bytes_read_add_up_to_the_size_of_the_file(tmp_path: Path) -> None:
    passages = [Passage(str(i), "T", os.urandom(400).hex()) for i in range(3000)]
    for name in ("c.jsonl", "c.tsv", *(f"c.jsonl{ending}" for ending in (".gz", ".bz2", ".xz", ".zst"))):
        data = tsv(passages) if name == "c.tsv" else encode_passages(passages)
        (tmp_path / name).write_bytes(COMPRESS[Path(name).suffix if Path(name).suffix in COMPRESS else ""](data))
    parquet(tmp_path / "c.parquet", {"id": range(3000), "text": [passage.text for passage in passages]})
    for file in corpus_files(str(tmp_path)):
        read_bytes = [record.read_bytes for record in read_raw(file.uri)]
        assert sum(read_bytes) == file.bytes and min(read_bytes) >= 0, file.uri
        # A bz2 block alone is 0.4 of this file.
        assert 0.3 < sum(read_bytes[:1500]) / file.bytes < 0.8, file.uri


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1), min_size=1),
    st.integers(1, 20),
)
def test_any_text_comes_back_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], chunk: int
) -> None:
    passages = [Passage(str(i), text, text) for i, text in enumerate(texts)]
    folder = tmp_path_factory.mktemp("c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("regrad.data.files._CHUNK", chunk)
        assert read(folder / "c.jsonl", encode_passages(passages)) == passages
        quoted = [Passage(p.id, p.title.replace("\r", "r"), p.text.replace("\r", "r")) for p in passages]
        assert read(folder / "c.tsv", tsv(quoted)) == quoted


@given(st.binary(max_size=200))
def test_no_bytes_stop_the_reading_of_text(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """But for those at its beginning that say that it is not text but packed, or in UTF-16."""
    assume(
        not data.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh91AY&SY", b"\xfd7zXZ", b"\xff\xfe", b"\xfe\xff"))
    )
    folder = tmp_path_factory.mktemp("c")
    for name in ("c.jsonl", "c.tsv"):
        problems(folder / name, data)


def test_a_passage_without_an_id_is_named_by_its_text_whatever_is_in_it() -> None:
    assert passage_id("text one") == sha256(b"text one").hexdigest()[:16]
    assert len({passage_id(text) for text in ("", "a", "\ud800", "\ud801")}) == 4
