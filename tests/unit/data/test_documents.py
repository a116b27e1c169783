from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from regrad.data.documents import ChunkConfig, Reading, read_documents
from regrad.errors import CorpusError


def words() -> Tokenizer:
    """A token for each word and each sign."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def read(folder: Path, max_tokens: int = 16) -> Reading:
    return read_documents(str(folder), words(), ChunkConfig(max_tokens=max_tokens))


def test_a_text_is_cut_between_sentences_and_cited_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    first = "The harbour was built in 1871 by two brothers from Girton."
    second = "It burned down in the winter of 1902.\nNobody was hurt, says the register."
    (tmp_path / "notes" / "old_harbour.txt").write_text(f"{first}\n\n{second}\n")
    found = read(tmp_path).passages
    assert [(p.id, p.title) for p in found] == [
        ("notes/old_harbour.txt:1", "old harbour"),
        ("notes/old_harbour.txt:3", "old harbour"),
        ("notes/old_harbour.txt:4", "old harbour"),
    ]
    assert [p.text for p in found] == [first, *second.split("\n")]


def test_no_passage_is_longer_than_asked_and_no_word_is_lost(tmp_path: Path) -> None:
    text = " ".join(f"word{i}" + ("." if i % 40 == 39 else "") for i in range(500))
    (tmp_path / "long.txt").write_text(text)
    found = read(tmp_path, 32).passages
    assert max(len(words().encode(p.text).ids) for p in found) <= 32
    assert " ".join(p.text for p in found).split() == text.split()
    assert len({p.id for p in found}) == len(found)
    assert [p.id for p in found[:2]] == ["long.txt:1", "long.txt:1.2"]


def test_headings_of_markdown_become_titles_and_those_in_code_do_not(tmp_path: Path) -> None:
    code = "```\n# a comment\nmake\n```"
    text = f"---\ntag: x\n---\n# Guide\n\nHow it works.\n\n## Installing\n\nRun it.\n\n{code}\n\nThen wait.\n"
    (tmp_path / "guide.md").write_text(text)
    found = read(tmp_path).passages
    assert {p.title for p in found} == {"Guide", "Guide: Installing"}
    assert all("tag: x" not in p.text for p in found)
    assert next(p for p in found if "Then wait." in p.text).title == "Guide: Installing"


def test_a_file_that_is_no_text_is_named_with_the_reason_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_bytes(b"\xef\xbb\xbfThe harbour burned down.\r\nNobody was hurt.\r\n")
    (tmp_path / "again.txt").write_text("The harbour burned down.\nNobody was hurt.\n")
    (tmp_path / "latin.txt").write_bytes(b"one\ntwo\ncaf\xe9\n")
    (tmp_path / "wide.txt").write_bytes("words".encode("utf-16"))
    (tmp_path / "binary.txt").write_bytes(b"a\x00b")
    (tmp_path / "packed.md").write_text("words\n" + "x" * 1_000_000)
    (tmp_path / "empty.md").write_text("\n---\n")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".hidden.txt").write_text("Hidden.")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "folder.txt").mkdir()
    reading = read(tmp_path)
    assert [(p.id, p.text) for p in reading.passages] == [("again.txt:1", "The harbour burned down.\nNobody was hurt.")]
    assert reading.repeated == 1
    assert sorted(reading.left_out) == ["binary.txt", "empty.md", "gone.txt", "latin.txt", "packed.md", "wide.txt"]
    assert "line 3" in reading.left_out["latin.txt"]
    assert "UTF-16" in reading.left_out["wide.txt"]
    assert "line 2 has 1,000,000 characters" in reading.left_out["packed.md"]


@pytest.mark.parametrize("what", ["nothing", "no words", "a file", "not there"])
def test_a_folder_without_text_is_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "folder"
    if what == "a file":
        folder.write_text("words")
    elif what != "not there":
        folder.mkdir()
    if what == "no words":
        (folder / "empty.txt").write_text(" \n")
    code = "corpus.no_folder" if what in ("a file", "not there") else "corpus.no_documents"
    with pytest.raises(CorpusError) as raised:
        read(folder)
    assert raised.value.code == code
    assert ("empty.txt" in str(raised.value)) == (what == "no words")
