"""The one reader and writer of JSON lines: what is wrong is told with the file and the line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from regrad.data.files import MAX_LINE_BYTES
from regrad.data.jsonl import as_found, encode_jsonl, parse_jsonl, read_jsonl
from regrad.errors import CorpusError, EvaluationError
from tests.tools.refusals import refused

GOOD = b'{"id": "a"}\n'


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_what_is_written_is_read_again_with_file_and_line(tmp_path: Path, name: str) -> None:
    records = [{"id": "a", "text": "naïve\u2028line"}, {"n": [1, None]}]
    first, second = encode_jsonl(records).splitlines(keepends=True)
    data = first + b"\n \r\n" + second.rstrip()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    path = f"{tmp_path}/{name}"
    assert list(read_jsonl(path)) == [(f"{path} line 1", records[0]), (f"{path} line 4", records[1])]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "not_json"),
        (b'{"id": "\xff"}', "not_json"),
        (b'[{"id": "a"}]', "array"),
        (b"\xef\xbb\xbf{}", "byte_order_mark"),
        (b"null", "no_object"),
        (b"NaN", "no_object"),
        (b'"text"', "no_object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, code: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + line + b"\n")
    with refused(CorpusError, code, where=f"{path} line 2"):
        list(read_jsonl(str(path)))
    with refused(EvaluationError, code, where="there line 2"):
        list(parse_jsonl(GOOD + line, "there", EvaluationError))


def test_a_line_that_is_too_long_is_named_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b"x" * (MAX_LINE_BYTES + 1) + b"\n" + GOOD)
    with refused(CorpusError, "bad_line", where=f"{path} line 2", problem=f"longer than {MAX_LINE_BYTES} bytes"):
        list(read_jsonl(str(path)))


def test_an_encoding_that_is_not_ours_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a"}', encoding="utf-16")
    with refused(CorpusError, "utf_16", uri=str(path)):
        list(read_jsonl(str(path)))
    path.write_text('{"id": "a"}', encoding="utf-8-sig")
    assert [record for _, record in read_jsonl(str(path))] == [{"id": "a"}]


def test_a_wrong_value_is_shown_as_json_has_it() -> None:
    assert [as_found(value) for value in (None, True, float("nan"), "it's", {"a": [None]})] == [
        "null",
        "true",
        "NaN",
        '"it\'s"',
        '{"a": [null]}',
    ]
    assert len(as_found(["x" * 1000])) == 60
