"""Pyserini's JsonCollection: files of one object, of an array, of objects one after another."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from regrad.data.corpora import read_passages
from regrad.data.corpus_maker import CorpusConfig, CorpusMaker, read_rejected
from regrad.data.json_files import read_json
from regrad.data.passage_sources import read_sources
from regrad.errors import CorpusError
from tests.tools.refusals import refused

ONE, TWO = {"id": "1", "contents": '"Ada"\nShe said.'}, {"docid": 2, "title": "Zoë", "text": "Zoë went."}


def made(tmp_path: Path, source: Path) -> list[tuple[str, str, str]]:
    config = CorpusConfig(sources=(str(source),), output=str(tmp_path / "out"))
    CorpusMaker(config, None, lambda _: None).run()
    return [(passage.id, passage.title, passage.text) for passage in read_passages(f"{tmp_path}/out/corpus.jsonl")]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([ONE, TWO]),
        json.dumps([ONE, TWO], indent=2, ensure_ascii=False),
        f"\ufeff{json.dumps(ONE, indent=1)}\n\n{json.dumps(TWO)}",
        f"{json.dumps(ONE)}\r\n{json.dumps(TWO)}\r\n",
    ],
    ids=["array", "array of lines", "objects", "lines"],
)
@pytest.mark.parametrize("name", ["docs.json", "DOCS.JSON.GZ"])
def test_all_layouts_are_read_alone_and_in_a_folder(tmp_path: Path, content: str, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    data = content.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith("GZ") else data)
    expected = [("1", "Ada", "She said."), ("2", "Zoë", "Zoë went.")]
    assert made(tmp_path, folder / name) == made(tmp_path, folder) == expected
    places = [(source.file, source.unit, source.first) for source in read_sources(f"{tmp_path}/out")]
    assert places == [(name, "item", 1), (name, "item", 2)]


def test_a_folder_of_one_object_a_file_beside_other_records(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        (folder / f"doc{number}.json").write_text(json.dumps({"id": f"d{number}", "contents": f"Text {number}."}))
    (folder / "a.jsonl").write_text(json.dumps(ONE) + "\n")
    assert [identifier for identifier, _, _ in made(tmp_path, folder)] == ["1", "d0", "d1", "d2"]


def test_what_is_no_record_is_named_and_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    surrogate = {"id": "\ud800", "text": "x"}
    (folder / "a.json").write_text(
        json.dumps([ONE, 7, [TWO], {"name": "settings"}, surrogate, ONE | {"contents": "!"}])
    )
    (folder / "cut.json").write_text(json.dumps(TWO) + '\n{"id": "3", "tex')
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "empty.json").write_text("\n")
    (folder / "latin.json").write_bytes(b'{"id": "4", "text": "caf\xe9"}')
    (folder / "wide.json").write_bytes(json.dumps(ONE).encode("utf-16"))
    assert [identifier for identifier, _, _ in made(tmp_path, folder)] == ["1", "2"]
    found = [(one.where.removeprefix(f"{folder}/"), one.reason) for one in read_rejected(f"{tmp_path}/out")]
    expected = [
        ("a.json item 2", "a JSON object is expected, found 7"),
        ("a.json item 3", "a JSON object is expected, found [{"),
        ("a.json item 4", "field 'id' is missing"),
        ("a.json item 5", "field 'id' holds a NUL or a character that is not valid Unicode"),
        ("a.json item 6", "its text has no words"),
        ("cut.json", f"{folder}/cut.json is not JSON: Unterminated string"),
        ("deep.json", f"{folder}/deep.json is not JSON: "),
        ("latin.json", f"{folder}/latin.json is not JSON: 'utf-8' codec"),
        ("wide.json", f"{folder}/wide.json is UTF-16"),
    ]
    assert [where for where, _ in found] == [where for where, _ in expected]
    assert all(reason.startswith(start) for (_, reason), (_, start) in zip(found, expected, strict=True)), found


def test_a_file_that_is_too_large_for_memory_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([ONE, TWO]))
    monkeypatch.setattr("regrad.data.json_files._MOST_BYTES", path.stat().st_size)
    assert len(list(read_json(str(path)))) == 2
    path.write_text(json.dumps([ONE, TWO]) + " ")
    with refused(CorpusError, "file_too_large") as error:
        list(read_json(str(path)))
    assert "jq -c '.[]'" in str(error.value)


def test_an_object_that_is_longer_than_a_line_may_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regrad.data.json_files.MAX_LINE_BYTES", 100)
    (tmp_path / "a.json").write_text(json.dumps([{"id": "1", "text": "x" * 100}, TWO]))
    assert [bool(line.problem) for line in read_json(f"{tmp_path}/a.json")] == [True, False]
