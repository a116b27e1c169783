"""Where passages are from: file and lines, rows, pages or characters, beside the corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from regrad.data.corpora import read_passages
from regrad.data.corpus_maker import CorpusConfig, CorpusMaker
from regrad.data.passage_sources import PassageOrigin, read_sources
from regrad.data.passages import Passage
from regrad.errors import CorpusError
from tests.tools.pdf import pdf
from tests.tools.refusals import refused

LONG = " ".join(f"Sentence number {n} is short." for n in range(20))


def made(tmp_path: Path, *sources: Path) -> list[tuple[Passage, PassageOrigin]]:
    """The passages of these sources, each with where it is from."""
    output = str(tmp_path / "out")
    CorpusMaker(
        CorpusConfig(sources=tuple(map(str, sources)), output=output, max_tokens=16), None, lambda _: None
    ).run()
    return list(zip(read_passages(f"{output}/corpus.jsonl"), read_sources(output), strict=True))


def test_documents_have_file_and_lines_pages_or_characters(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    text = "# Harbour\n\nBuilt in\n1871 by brothers.\n\n## Fire\n\n" + LONG.replace(". ", ".\n")
    (folder / "deep" / "a.md").write_text(text)
    (folder / "b.pdf").write_bytes(pdf("Page one.", "", "Page three."))
    (folder / "c.html").write_text(f"<h1>Harbour</h1><p>{LONG}</p>")
    found = made(tmp_path, folder)
    assert [source.id for _, source in found] == [passage.id for passage, _ in found]
    lines = text.split("\n")
    units = {"deep/a.md": "line", "b.pdf": "page", "c.html": "character"}
    for passage, source in found:
        assert source.unit == units[source.file] and source.end - source.start == len(passage.text)
        if source.file == "deep/a.md":
            assert text[source.start : source.end] == passage.text
            assert passage.text in "\n".join(lines[source.first - 1 : source.last])
            assert passage.id.split(":")[1].split(".")[0] == str(source.first)
        if source.file == "c.html":
            assert (source.first, source.last) == (source.start + 1, source.end)
    (harbour,) = [source for passage, source in found if "Built in" in passage.text]
    assert (harbour.first, harbour.last) == (1, 4)
    assert [(source.first, source.last) for _, source in found if source.file == "b.pdf"] == [(1, 1), (3, 3)]


def test_records_have_file_and_line_and_their_pieces_the_characters_of_the_text(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    records = [{"id": "s", "text": "Short."}, {"id": "g", "contents": f'"Title"\n{LONG}'}]
    (folder / "a.jsonl").write_text("\n" + "".join(json.dumps(record) + "\n" for record in records))
    (folder / "b.tsv").write_text('id\ttext\ttitle\n7\t"two\n\nlines"\tT\n8\tone line\tT\n')
    pq.write_table(pa.table({"id": ["p", "q"], "text": ["Here.", "There."]}), folder / "c.parquet")
    found = made(tmp_path, folder)
    places = {source.id: (source.file, source.unit, source.first, source.last) for _, source in found}
    assert places["s"] == ("a.jsonl", "line", 2, 2)
    assert places["g#1"] == places["g#2"] == ("a.jsonl", "line", 3, 3)
    assert (places["7"], places["8"]) == (("b.tsv", "line", 2, 4), ("b.tsv", "line", 5, 5))
    assert (places["p"], places["q"]) == (("c.parquet", "row", 1, 1), ("c.parquet", "row", 2, 2))
    pieces = [(passage, source) for passage, source in found if source.id.startswith("g#")]
    assert len(pieces) > 2
    for passage, source in pieces:
        assert LONG[source.start : source.end] == passage.text


def test_the_passages_of_a_folder_do_not_depend_on_where_they_are_read_from(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text(json.dumps({"id": "1", "text": LONG}) + "\n")
    first, second = (made(tmp_path, tmp_path / name) for name in ("one", "two"))
    assert [passage for passage, _ in first] == [passage for passage, _ in second]
    assert {source.file for _, source in [*first, *second]} == {"one.jsonl", "two.jsonl"}


def test_a_file_of_sources_that_is_none_or_is_not_there_is_an_error(tmp_path: Path) -> None:
    with refused(CorpusError, "not_found"):
        list(read_sources(str(tmp_path)))
    (tmp_path / "sources.jsonl").write_text('{"id": "1"}\n')
    with refused(CorpusError, "bad_line", where=f"{tmp_path}/sources.jsonl line 1"):
        list(read_sources(str(tmp_path)))
