from __future__ import annotations

import gzip
import json
import re
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrad.data.corpora import read_passages
from regrad.data.corpus_maker import CARD, PASSAGES, REJECTED, CorpusConfig, CorpusMaker
from regrad.errors import CorpusError, StorageError
from tests.tools.pdf import pdf
from tests.tools.refusals import refused

LONG = " ".join(f"Sentence number {n} is short." for n in range(20))


def make(tmp_path: Path, *sources: Path | str, **settings: object) -> tuple[list[dict[str, str]], dict[str, object]]:
    """The passages and the card of a corpus of these sources; a token is a word."""
    config = CorpusConfig(sources=tuple(map(str, sources)), output=str(tmp_path / "out"), **settings)  # type: ignore[arg-type]
    CorpusMaker(config, None, lambda _: None).run()
    lines = (tmp_path / "out" / PASSAGES).read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((tmp_path / "out" / CARD).read_text())


def rejected(tmp_path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (tmp_path / "out" / REJECTED).read_text().splitlines()]


def write(path: Path, *records: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_records_of_every_layout_become_one_corpus(tmp_path: Path) -> None:
    flash = write(tmp_path / "flash.jsonl", {"id": "0", "contents": '"Evan Morris"\nHe was a lawyer.'})
    beir = tmp_path / "beir"
    write(beir / "corpus.jsonl", {"_id": "b1", "title": "Harbour", "text": "It burned down."})
    write(beir / "queries.jsonl", {"_id": "q1", "text": "What burned down?"})
    dpr = tmp_path / "psgs.tsv.gz"
    dpr.write_bytes(gzip.compress(b"id\ttext\ttitle\n1\tAaron was a prophet.\tAaron\n"))
    table = tmp_path / "table.parquet"
    pq.write_table(pa.table({"id": [7], "text": ["In a column."]}), table)
    passages, card = make(tmp_path, flash, beir, dpr, table)
    assert [(p["id"], p["title"]) for p in passages] == [
        ("0", "Evan Morris"),
        ("b1", "Harbour"),
        ("1", "Aaron"),
        ("7", ""),
    ]
    assert (card["files"], card["records"], card["passages"], card["rejected"]) == (4, 4, 4, 0)
    assert [p.id for p in read_passages(str(tmp_path / "out" / PASSAGES))] == ["0", "b1", "1", "7"]


def test_a_long_record_is_cut_between_sentences_and_no_word_is_lost(tmp_path: Path) -> None:
    passages, card = make(tmp_path, write(tmp_path / "a.jsonl", {"id": "x", "title": "T", "text": LONG}), max_tokens=16)
    assert [p["id"] for p in passages[:2]] == ["x#1", "x#2"]
    assert all(p["text"].endswith(".") and len(p["text"].split()) <= 16 and p["title"] == "T" for p in passages)
    assert " ".join(p["text"] for p in passages).split() == LONG.split()
    assert card["cut"] == 1


def test_documents_of_a_folder_are_cited_by_line_and_page(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.md").write_text("# Harbour\n\nBuilt in 1871.\n")
    (folder / "b.pdf").write_bytes(pdf("Page one.", "Page two."))
    (folder / "copy.txt").write_text("Page one.")
    passages, card = make(tmp_path, folder)
    assert [p["id"] for p in passages] == ["b.pdf:p1", "b.pdf:p2", "deep/a.md:1"]
    assert card["repeated"] == 1
    globbed, _ = make(tmp_path, f"{folder}/*/*.md")
    assert [p["id"] for p in globbed] == ["deep/a.md:1"]


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in ("north", "south"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "readme.md").write_text(f"The harbour in the {folder}.")
    for sources in (("north", "south"), ("north/readme.md", "south/readme.md"), ("north/*.md", "south")):
        passages, card = make(tmp_path, *(f"{tmp_path}/{source}" for source in sources))
        assert [p["id"] for p in passages] == ["north/readme.md:1", "south/readme.md:1"]
        assert card["rejected"] == 0


def test_what_cannot_be_used_is_listed_and_stops_nothing_unless_strict(tmp_path: Path) -> None:
    bad = write(tmp_path / "a.jsonl", {"id": "1", "text": "Good."}, {"id": "2"}, {"id": "3", "text": " - "})
    with bad.open("a") as file:
        file.write("not json\n")
        file.write(json.dumps({"id": "1", "text": "Another text."}) + "\n")
        file.write(json.dumps({"id": "9", "text": "Good."}) + "\n")
    broken = tmp_path / "b.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"id": "5", "text": "Never read."}\n')[:20])
    passages, card = make(tmp_path, bad, broken)
    assert [p["id"] for p in passages] == ["1"]
    assert (card["rejected"], card["repeated"]) == (5, 1)
    found = {one["where"].removeprefix(f"{tmp_path}/"): one["reason"] for one in rejected(tmp_path)}
    assert list(found) == ["a.jsonl line 2", "a.jsonl line 3", "a.jsonl line 4", "a.jsonl line 5", "b.jsonl.gz"]
    assert found["a.jsonl line 2"].startswith("field 'text' is missing")
    assert found["a.jsonl line 4"].startswith("is not JSON")
    assert found["a.jsonl line 5"] == f"id '1' was already used for another text, at {bad} line 1"
    before = (tmp_path / "out" / PASSAGES).read_bytes()
    with refused(CorpusError, "rejected", where=f"{bad} line 2"):
        make(tmp_path, bad, strict=True)
    assert (tmp_path / "out" / PASSAGES).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_of_an_id_that_comes_again_both_places_are_named(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {"id": "0", "text": "Zero."}, {"id": "1", "text": "One."})
    table = tmp_path / "b.parquet"
    pq.write_table(pa.table({"id": ["2", "1", "c.pdf:p2"], "text": ["Two.", "Another.", "Three."]}), table)
    (tmp_path / "c.pdf").write_bytes(pdf("Four.", "Five."))
    make(tmp_path, first, table, tmp_path / "c.pdf")
    places = [(one["where"], one["reason"].partition(", at ")[2]) for one in rejected(tmp_path)]
    assert places == [(f"{table} row 2", f"{first} line 2"), (f"{tmp_path}/c.pdf page 2", f"{table} row 3")]


def test_nothing_is_read_when_a_source_is_missing_or_the_output_is_something_else(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", {"id": "1", "text": "Good."})
    with refused(CorpusError, "not_found"):
        make(tmp_path, good, tmp_path / "nowhere")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("Mine.")
    with refused(StorageError, "occupied"):
        make(tmp_path, good)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_corpus_without_a_usable_passage_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"a\.jsonl line 1: its text has no words"):
        make(tmp_path, write(tmp_path / "a.jsonl", {"id": "1", "text": "..."}))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_text_of_a_million_characters_is_cut_and_one_without_words_is_rejected(tmp_path: Path) -> None:
    blob, words = {"id": "1", "text": "x" * 1_000_000}, {"id": "2", "text": "A word or two. " * 70_000}
    passages, _ = make(tmp_path, write(tmp_path / "a.jsonl", blob, words))
    assert {p["id"].split("#")[0] for p in passages} == {"2"}
    assert max(len(p["text"].split()) for p in passages) <= 200
    assert "1,000,000 characters without a space" in rejected(tmp_path)[0]["reason"]


def test_a_script_without_spaces_is_cut_by_its_signs(tmp_path: Path) -> None:
    text = "".join(f"港は{number}年に建てられた。" for number in range(300))
    passages, card = make(tmp_path, write(tmp_path / "a.jsonl", {"id": "1", "text": text}))
    assert card["rejected"] == 0
    assert "".join(p["text"] for p in passages) == text
    assert 5 <= len(passages) <= 40
    assert all(p["text"].endswith("。") for p in passages)


@pytest.mark.parametrize(
    ("word", "signs"),
    [
        ("ภาษาไทยเป็นภาษาที่สวยงาม", 20),
        ("ພາສາລາວ", 7),
        ("ភាសាខ្មែរ", 5),
        ("မြန်မာ", 3),
        ("ひらがなカタカナー", 9),
        ("ｶﾀｶﾅｰ", 5),
        ("時々", 2),
        ("བོད", 2),
    ],
    ids=["Thai", "Lao", "Khmer", "Myanmar", "kana", "half-width kana", "Chinese that repeats", "Tibetan"],
)
def test_of_a_script_without_spaces_each_sign_with_its_marks_is_a_token(tmp_path: Path, word: str, signs: int) -> None:
    text = "".join(f"{word}{number}" for number in range(1000))
    passages, _ = make(tmp_path, write(tmp_path / "a.jsonl", {"id": "1", "text": text}), max_tokens=100)
    assert "".join(p["text"] for p in passages) == text
    tokens = [
        sum(unicodedata.category(sign)[0] == "L" for sign in p["text"]) + len(re.findall("[0-9]+", p["text"]))
        for p in passages
    ]
    assert sum(tokens) >= (signs + 1) * 1000 and 80 < max(tokens) <= 100
    assert len(passages) <= 13 * (signs + 1)
