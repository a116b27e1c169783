"""What of a place becomes passages, and what stands beside them."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from regrad.data.corpora import read_passages
from regrad.data.corpus_maker import CARD, PASSAGES, CorpusConfig, CorpusMaker
from regrad.data.sources import find_source
from regrad.errors import CorpusError
from tests.tools.pdf import pdf
from tests.tools.refusals import refused


def lines(*records: dict[str, str]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def beir(folder: Path, ending: str = "", queries: bool = True) -> Path:
    """A data set of one passage, named after its folder."""
    (folder / "qrels").mkdir(parents=True)
    pack = gzip.compress if ending == ".gz" else bytes
    (folder / f"corpus.jsonl{ending}").write_bytes(pack(lines({"_id": folder.name, "text": folder.name}).encode()))
    if queries:
        (folder / f"queries.jsonl{ending}").write_bytes(pack(lines({"_id": "q", "text": "What burned?"}).encode()))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\t{folder.name}\t1\n")
    return folder


def made(tmp_path: Path, *sources: object) -> tuple[list[str], dict[str, int], str]:
    """The ids, the card and the last line of a corpus of these sources."""
    config = CorpusConfig(sources=tuple(map(str, sources)), output=str(tmp_path / "out"))
    line = CorpusMaker(config, None, lambda _: None).run()
    card = json.loads((tmp_path / "out" / CARD).read_text())
    return [passage.id for passage in read_passages(str(tmp_path / "out" / PASSAGES))], card, line


@pytest.mark.parametrize("place", ["", "*/*.jsonl*", "*", "**", "*/*", "**/[cq]*"])
@pytest.mark.parametrize("queries", [True, False])
def test_of_beirs_data_sets_the_corpora_alone_are_read_wherever_they_lie(
    tmp_path: Path, place: str, queries: bool
) -> None:
    folder = tmp_path / "lay"
    beir(folder / "one", queries=queries)
    beir(folder / "two", ".gz", queries)
    uri = f"{folder}/{place}" if place else str(folder)
    assert [passage.id for passage in read_passages(uri)] == ["one", "two"]
    ids, card, line = made(tmp_path, uri)
    assert ids == ["one", "two"]
    left_out = (2 if queries else 0) + (0 if place == "*/*.jsonl*" else 2)
    assert (card["files"], card["left_out"], card["rejected"]) == (2, left_out, 0)
    assert ("of no passages" in line) == bool(left_out)


@pytest.mark.parametrize("place", ["", "/", "/*"])
def test_a_beir_folder_itself_has_no_passages_but_its_corpus(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = beir(tmp_path / "scifact")
    with caplog.at_level(logging.WARNING):
        assert [passage.id for passage in read_passages(f"{folder}{place}")] == ["scifact"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "holds no passages: " in line and "qrels/test.tsv" in line and "queries.jsonl" in line


def test_questions_that_a_glob_matches_without_their_corpus_are_none_either(tmp_path: Path) -> None:
    beir(tmp_path / "lay" / "one")
    (tmp_path / "lay" / "more.tsv").write_text("1\twords\tT\n")
    assert [passage.id for passage in read_passages(f"{tmp_path}/lay/**/*.tsv")] == ["1"]
    with refused(CorpusError, "no_file"):
        find_source(f"{tmp_path}/lay/one/q*")


def test_what_is_named_itself_or_stands_beside_no_corpus_is_read(tmp_path: Path) -> None:
    folder = beir(tmp_path / "scifact")
    assert [passage.id for passage in read_passages(f"{folder}/queries.jsonl")] == ["q"]
    (folder / "corpus.jsonl").unlink()
    (folder / "qrels" / "test.tsv").write_text("1\twords\tT\n")
    assert [passage.id for passage in read_passages(str(folder))] == ["1", "q"]


def test_a_corpus_that_was_made_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines({"id": "1", "text": "Words."}, {"id": "2"}))
    made(tmp_path, tmp_path / "a.jsonl")
    assert [passage.id for passage in read_passages(str(tmp_path / "out"))] == ["1"]


def test_a_folder_of_a_corpus_that_is_only_called_so_is_read_whole(tmp_path: Path) -> None:
    for name in ("corpus", "rejected"):
        (tmp_path / f"{name}.jsonl").write_text(lines({"id": name, "text": "Words."}))
    assert [passage.id for passage in read_passages(str(tmp_path))] == ["corpus", "rejected"]


def test_of_a_folder_with_both_records_and_documents_are_taken(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    (folder / "deep" / "_posts").mkdir(parents=True)
    (folder / "docs.jsonl").write_text(lines({"id": "1", "text": "One."}))
    (folder / "good.md").write_text("# Good\n\nTwo.\n")
    (folder / "half.pdf").write_bytes(pdf("Three."))
    (folder / "deep" / "_posts" / "a.txt").write_text("Four.")
    (folder / "deep" / "_posts" / "a.jsonl").write_text(lines({"id": "hidden", "text": "As names of records are."}))
    (folder / "deep" / "readme.md").write_text("Five.")
    ids, card, line = made(tmp_path, folder)
    assert ids == ["deep/_posts/a.txt:1", "deep/readme.md:1", "1", "good.md:1", "half.pdf:p1"]
    assert (card["files"], card["records"], card["left_out"], card["rejected"]) == (5, 1, 0, 0)
    assert "left out" not in line
    assert made(tmp_path, f"{folder}/*")[0] == ids


def test_what_is_not_read_of_a_folder_is_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "some"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "docs.jsonl").write_text(lines({"id": "1", "text": "One."}))
    for name in ("README.md", "data/LICENSE.txt", "table.csv", "notes.docx", "picture.png"):
        (folder / name).write_text("Words.")
    with caplog.at_level(logging.WARNING):
        ids, card, line = made(tmp_path, folder)
    assert ids == ["1"]
    assert (card["files"], card["left_out"], card["rejected"]) == (1, 4, 0)
    assert "4 files left out" in line
    assert "for the ending: notes.docx, table.csv (" in caplog.text
    assert "beside: README.md, data/LICENSE.txt" in caplog.text
    (folder / "data" / "docs.jsonl").unlink()
    assert made(tmp_path, folder)[0] == ["README.md:1"]
