from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from regrad.data.corpora import read_passages
from regrad.data.corpus_maker import CARD, PASSAGES, CorpusConfig, CorpusMaker, read_rejected
from regrad.data.documents import read_document
from regrad.data.passages import Passage
from regrad.errors import CorpusError
from tests.tools.pdf import pdf
from tests.tools.refusals import refused


def words() -> Tokenizer:
    """A token for each word and each sign."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


@dataclass
class Read:
    passages: list[Passage]
    repeated: int
    left_out: dict[str, str]


def read(folder: Path, max_tokens: int = 16, tokenizer: Tokenizer | None = None) -> Read:
    """What `regrad corpus` makes of a folder."""
    output = folder.with_name(f"{folder.name}-corpus")
    config = CorpusConfig(sources=(str(folder),), output=str(output), max_tokens=max_tokens)
    CorpusMaker(config, tokenizer or words(), lambda _: None).run()
    left_out = {one.where.removeprefix(f"{folder}/"): one.reason for one in read_rejected(str(output))}
    repeated = json.loads((output / CARD).read_text())["repeated"]
    return Read(list(read_passages(str(output / PASSAGES))), repeated, left_out)


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


def test_a_tokenizer_that_cuts_and_pads_counts_all_tokens(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(" ".join(f"word{n}" for n in range(500)))
    tokenizer = words()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    found = read(tmp_path, 32, tokenizer).passages
    assert [len(p.text.split()) for p in found] == [32] * 15 + [20]


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


@pytest.mark.parametrize(("what", "code"), [("nothing", "no_file"), ("no words", "empty"), ("not there", "not_found")])
def test_a_folder_without_text_is_refused(tmp_path: Path, what: str, code: str) -> None:
    folder = tmp_path / "folder"
    if what != "not there":
        folder.mkdir()
    if what == "no words":
        (folder / "empty.txt").write_text(" \n")
    with pytest.raises(CorpusError) as raised:
        read(folder)
    assert raised.value.code == f"corpus.{code}"
    assert ("empty.txt" in str(raised.value)) == (what == "no words")


def test_one_file_will_do_if_its_name_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The harbour burned down.")
    assert [p.id for p in read(tmp_path / "notes.txt").passages] == ["notes.txt:1"]
    (tmp_path / "NOTES").write_text("The harbour burned down.")
    with refused(CorpusError, "wrong_ending"):
        read(tmp_path / "NOTES")


def test_names_with_an_underscore_are_read_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("_posts", ".git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "_a.md").write_text(f"Text of {name}.")
    assert [p.id for p in read(tmp_path).passages] == ["_posts/_a.md:1"]


PAGE = """<!doctype html>
<html><head><meta charset="latin-1"><title>The old harbour</title><script>evil()</script></head><body>
<nav>Home</nav><h1>The old harbour</h1>
<p>Built in <b>1871</b> by <a href="x">two brothers</a> from Zürich.</p>
<h2>The fire</h2><ul><li>It burned_down in 1902.</li></ul><style>p {}</style></body></html>"""


def test_a_web_page_is_read_with_its_headings_and_without_its_scripts(tmp_path: Path) -> None:
    (tmp_path / "harbour.html").write_bytes(PAGE.encode("latin-1"))
    found = read(tmp_path, 20).passages
    assert [(p.id, p.title) for p in found] == [
        ("harbour.html:1", "The old harbour"),
        ("harbour.html:2", "The old harbour: The fire"),
    ]
    assert "Built in 1871 by two brothers from Zürich." in found[0].text
    assert "* It burned_down in 1902." in found[1].text
    assert not any(word in p.text for p in found for word in ("evil", "Home", "p {}"))


def test_a_pdf_is_cited_by_page(tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(pdf("The harbour was built in 1871.", "", "It burned down in 1902."))
    reading = read(tmp_path)
    assert [(p.id, p.title, p.text) for p in reading.passages] == [
        ("report.pdf:p1", "report", "The harbour was built in 1871."),
        ("report.pdf:p3", "report", "It burned down in 1902."),
    ]
    assert list(reading.left_out) == ["report.pdf page 2"]
    assert "no text layer" in reading.left_out["report.pdf page 2"]


def test_a_page_without_text_among_others_stops_a_strict_run_and_one_without_words_is_told_apart(
    tmp_path: Path,
) -> None:
    (tmp_path / "report.pdf").write_bytes(pdf("Words.", "---", "Words."))
    reading = read(tmp_path)
    assert (reading.left_out, reading.repeated) == ({"report.pdf page 2": "it has no words"}, 1)
    config = CorpusConfig(sources=(str(tmp_path),), output=str(tmp_path / "out"), strict=True)
    with refused(CorpusError, "rejected", where=f"{tmp_path}/report.pdf page 2"):
        CorpusMaker(config, None, lambda _: None).run()


def test_a_pdf_without_text_a_damaged_one_and_a_deep_page_are_named(tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(pdf("", ""))
    (tmp_path / "cut.pdf").write_bytes(pdf("The harbour was built in 1871.")[:90])
    (tmp_path / "no.pdf").write_bytes(b"words")
    (tmp_path / "deep.html").write_text("<div>" * 5000 + "x")
    (tmp_path / "good.txt").write_text("The harbour burned down.")
    left_out = read(tmp_path).left_out
    assert sorted(left_out) == ["cut.pdf", "deep.html", "no.pdf", "scan.pdf"]
    assert "its 2 pages have no text layer" in left_out["scan.pdf"]
    assert "nested too deeply" in left_out["deep.html"]


@pytest.mark.parametrize("name", ["a.pdf", "a.html"])
def test_without_the_library_it_is_said_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    monkeypatch.setitem(sys.modules, "bs4", None)
    (tmp_path / name).write_bytes(pdf("words"))
    with refused(CorpusError, "extra_missing"):
        read_document(name, str(tmp_path / name))
