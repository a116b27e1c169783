"""Reading a corpus: bad records as items, and files that are damaged, closed to us or not what their name says."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from regrad.data.corpora import read_passages, read_raw
from regrad.data.files import MAX_LINE_BYTES, corpus_files
from regrad.data.passages import Passage, encode_passages, parse_passage
from regrad.errors import CorpusError
from tests.tools.refusals import refused
from tests.unit.data.test_corpora import COMPRESS, PASSAGES, parquet, problems, tsv


def test_the_first_bad_record_stops_the_reading_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(encode_passages(PASSAGES) + b"not json\n")
    parquet(tmp_path / "c.parquet", {"id": ["a", "b"], "text": ["x", None]})
    for place, code in (("c.jsonl line 4", "not_json"), ("c.parquet row 2", "wrong_field")):
        name, unit, _ = place.split()
        with refused(CorpusError, code, where=f"{tmp_path}/{place}") as error:
            list(read_passages(f"{tmp_path}/{name}"))
        assert f"; correct the {unit}, or run the file through `regrad corpus`" in str(error.value)


def test_bad_lines_of_jsonl_are_items(tmp_path: Path) -> None:
    good = b'{"id": "a", "text": "x"}'
    bad = [
        (b"not json", "line 2 is not JSON"),
        (b'{"id": "x", "text": "\xff"}', "line 3 is not JSON"),
        (b'{"id": "x", "text": null}', "line 4: field 'text' must be a string, found null"),
        (b'{"id": "x", "text": "\\u0000"}', "line 5: field 'text' holds a NUL"),
        (b'{"id": "\\ud800", "text": "x"}', "line 6: field 'id' holds a NUL or a character that is not valid Unicode"),
        (b"[" * 100_000, "line 7 is a JSON array, and one object a line is expected"),
        (b'{"id": true, "text": "x"}', "line 8: field 'id' must be a non-empty string, found true"),
        (b"\x00", "line 9 is not JSON"),
    ]
    found = problems(tmp_path / "c.jsonl", b"\n".join([good, *(line for line, _ in bad), good]))
    assert [found[0], found[-1]] == ["", ""]
    for problem, (_, expected) in zip(found[1:-1], bad, strict=True):
        assert problem.startswith(expected)


def test_bad_rows_of_tsv_are_items_and_take_no_others_with_them(tmp_path: Path) -> None:
    rows = [
        (b"1\tone", "line 2: not a row of tab-separated values: expected 3 columns (id, text, title), found 2"),
        (b"2\ttwo\tT\tmore", "line 3: not a row of tab-separated values: expected 3 columns"),
        (b"3\t\xff\tT", "line 4: not a row of tab-separated values: 'utf-8' codec"),
        (b'4\t"no end\tT', "line 5: not a row of tab-separated values: "),
        (b'5\t"good"\tT', ""),
        (b"\ttext\tT", "line 7: field 'id' must be a non-empty string"),
        (b"6\t\x00\tT", "line 8: field 'text' holds a NUL"),
        (b'7\t"good\nto the end"\tT', ""),
        (b'8\t"no\xff\nend"\tT', "line 11: not a row of tab-separated values: 'utf-8' codec"),
        (b"9\tgood\tT", ""),
        (b'10\t"never closed\tT', "line 14: not a row of tab-separated values: unexpected end of data"),
        (b"11\tgood\tT", ""),
    ]
    data = b"id\ttext\ttitle\n" + b"\n".join(row for row, _ in rows) + b"\n"
    found = problems(tmp_path / "c.tsv", data)
    # The second line of row 8 is a row of its own once the first has been given up.
    stray = found.pop(9)
    assert stray.startswith("line 12: not a row of tab-separated values: expected 3 columns")
    assert len(found) == len(rows)
    for problem, (_, expected) in zip(found, rows, strict=True):
        assert problem.startswith(expected) and bool(problem) == bool(expected)
    shown = [record.line for record in read_raw(str(tmp_path / "c.tsv")) if record.problem]
    assert shown[0] == b"1\tone"


def test_bad_rows_of_parquet_are_items(tmp_path: Path) -> None:
    text = pa.array([b"good", b"\xff\xfe", None, b"x\x00", b"x" * (MAX_LINE_BYTES + 1), b"good"])
    path = parquet(tmp_path / "c.parquet", {"id": ["a", "b", "c", "d", "e", None], "text": text})
    records = list(read_raw(path))
    assert [bool(record.problem) for record in records] == [False, True, False, False, True, False]
    assert records[1].where == f"{path} row 2" and b'"b"' in records[1].line and len(records[4].line) <= 80
    for record, code in zip(
        records[1:], ["bad_line", "wrong_field", "wrong_field", "bad_line", "wrong_field"], strict=True
    ):
        with refused(CorpusError, code, where=record.where):
            Passage.from_record(record.decode(), record.where)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c.jsonl", "c.tsv", "c.jsonl.gz", "c.jsonl.zst"])
@pytest.mark.parametrize("unclosed", [b"x", b'1\t"x'])
def test_a_line_that_is_too_long_is_an_item_and_not_held_in_memory(tmp_path: Path, name: str, unclosed: bytes) -> None:
    path, good = tmp_path / name, tsv(PASSAGES, "") if ".tsv" in name else encode_passages(PASSAGES)
    path.write_bytes(
        COMPRESS[path.suffix if path.suffix in COMPRESS else ""](
            good + unclosed + b"x" * (8 * MAX_LINE_BYTES) + b"\n" + good
        )
    )
    tracemalloc.start()
    records = list(read_raw(str(path)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [record.problem for record in records] == [""] * 3 + [f"longer than {MAX_LINE_BYTES} bytes"] + [""] * 3
    assert records[3].line == unclosed + b"x" * (80 - len(unclosed)) and records[3].where == f"{path} line 4"
    # At most: the line up to the limit, the chunk that goes past it, and the two put together.
    assert peak < 3 * MAX_LINE_BYTES


def test_a_quote_that_nothing_closes_is_given_up_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regrad.data.corpora.MAX_LINE_BYTES", 1000)
    rows = b"".join(b"%d\ttext\tT\n" % i for i in range(2, 500))
    found = problems(tmp_path / "c.tsv", b'1\t"no end\tT\n' + rows)
    assert found[0].startswith("line 1: not a row of tab-separated values: a quoted field is longer than")
    assert len(found) == 499 and not any(found[1:])


def damaged(ending: str, how: str) -> bytes:
    rows = [json.dumps({"id": str(i), "text": os.urandom(300).hex()}) for i in range(4000)]
    data = COMPRESS[ending]("\n".join(rows).encode())
    middle = len(data) // 2
    return data[:middle] if how == "cut off" else data[:middle] + b"\x00" * 4000 + data[middle + 4000 :]


@pytest.mark.parametrize("ending", [ending for ending in COMPRESS if ending])
def test_a_compressed_file_whose_name_does_not_say_so_is_told_apart(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(COMPRESS[ending](b'{"id": "a", "text": "x"}\n' * 50))
    with refused(CorpusError, "packed", uri=str(path)) as raised:
        list(read_raw(str(path)))
    assert f"add {ending} to its name" in str(raised.value)


# Nothing can see in a zst file without checksums that its middle was overwritten.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "how"),
    [
        (ending, how)
        for ending in COMPRESS
        for how in ("cut off", "overwritten")
        if ending and (ending, how) != (".zst", "overwritten")
    ],
)
def test_a_damaged_compressed_file_is_an_error_that_names_it(tmp_path: Path, ending: str, how: str) -> None:
    path = tmp_path / f"c.jsonl{ending}"
    path.write_bytes(damaged(ending, how))
    with refused(CorpusError, "damaged", uri=str(path)):
        list(read_raw(str(path)))


def test_what_is_not_parquet_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    rows = {"id": [str(i) for i in range(5000)], "text": [os.urandom(50).hex() for _ in range(5000)]}
    data = Path(parquet(path, rows)).read_bytes()
    for bad in (data[: len(data) // 2], b"garbage", data[:1000] + b"\x00" * 5000 + data[6000:]):
        path.write_bytes(bad)
        with refused(CorpusError, "damaged", uri=str(path)):
            list(read_raw(str(path)))
    with refused(CorpusError, "missing_field", field="text"):
        list(read_raw(parquet(path, {"id": ["a"], "body": ["x"]})))
    with refused(CorpusError, "wrong_field", field="text"):
        list(read_raw(parquet(path, {"id": ["a"], "text": [["x"]]})))


def test_what_may_not_be_read_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.jsonl").write_bytes(encode_passages(PASSAGES))

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.open", refuse)
    with refused(CorpusError, "forbidden", uri=str(tmp_path / "c.jsonl")):
        list(read_raw(str(tmp_path / "c.jsonl")))


def test_a_directory_that_cannot_be_listed_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "c.jsonl").write_bytes(encode_passages(PASSAGES))
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("/in"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with refused(CorpusError, "forbidden", uri=str(tmp_path)):
        corpus_files(str(tmp_path))


def test_a_known_problem_is_the_problem() -> None:
    assert parse_passage(b'{"id": "a", "text": "x"}') == Passage("a", "", "x")
    with refused(CorpusError, "bad_line", where="record", problem="longer than 7 bytes"):
        parse_passage(b'{"id": "a"', "longer than 7 bytes")
