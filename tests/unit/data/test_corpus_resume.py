"""`regrad corpus` goes on where it was stopped, to the bytes of a run that was not; what has changed is made again."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from regrad.data import corpus_maker
from regrad.data.chunks import Chunker, TextPiece
from regrad.data.corpus_maker import CARD
from regrad.data.documents import Document, read_document
from regrad.data.files import corpus_files
from regrad.data.passages import Passage
from regrad.errors import CorpusError
from regrad.locking import exclusive
from regrad.storage import Storage
from tests.tools.corpus_making import TRACED, contents, maker, small_parts, write_sources
from tests.tools.dying import traced
from tests.tools.patience import completed
from tests.tools.refusals import refused

POINTS, KILLS, END = 40, 16, 160


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_sources(tmp_path / "sources")
    maker(tmp_path / "sources", str(tmp_path / "whole")).run()
    small_parts(monkeypatch.setattr)
    return tmp_path / "sources"


def left(tmp_path: Path) -> set[str]:
    """What is beside the sources and the corpora."""
    return {path.name for path in tmp_path.iterdir()} - {"sources", "whole", "out"}


@contextmanager
def interrupted(line: int) -> Iterator[list[int]]:
    """The block ends at this line (0: never) of the code that makes corpora, as by Ctrl-C."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    before = sys.gettrace()
    try:
        yield traced(TRACED, line, interrupt)
    finally:
        sys.settrace(before)


def test_the_sources_have_something_of_everything(tmp_path: Path, sources: Path) -> None:
    card = json.loads(contents(str(tmp_path / "whole"))[CARD])
    assert all(card[name] for name in ("files", "records", "passages", "cut", "repeated", "rejected")), card
    assert card["files"] == 8


@pytest.mark.slow
def test_interrupted_at_any_point_it_completes_with_the_same_bytes(tmp_path: Path, sources: Path) -> None:
    out, whole = str(tmp_path / "out"), contents(str(tmp_path / "whole"))
    with interrupted(0) as lines:
        maker(sources, out).run()
    assert contents(out) == whole
    assert lines[0] > 500
    for line in range(1, lines[0], lines[0] // POINTS):
        Storage(out).remove()
        with pytest.raises(KeyboardInterrupt), interrupted(line):
            maker(sources, out).run()
        maker(sources, out).run()
        assert contents(out) == whole, f"interrupted at line {line} of {lines[0]}"
        assert not left(tmp_path), f"interrupted at line {line} of {lines[0]}"


def test_interrupted_again_and_again_over_an_older_corpus_it_gets_further_each_time(
    tmp_path: Path, sources: Path
) -> None:
    out, runs = str(tmp_path / "out"), 0
    (tmp_path / "old.txt").write_text("Another corpus.")
    maker(sources, out, sources=(str(tmp_path / "old.txt"),)).run()
    (tmp_path / "old.txt").unlink()
    before, whole = contents(out), contents(str(tmp_path / "whole"))
    while True:
        runs += 1
        try:
            with interrupted(500 + 100 * runs):  # the end, from parts alone, is some 800 lines
                maker(sources, out).run()
            break
        except KeyboardInterrupt:
            assert contents(out) in (before, whole), "the older one stays until the new one takes its place"
    assert contents(out) == whole
    assert 2 < runs < 20
    assert not left(tmp_path)


@pytest.mark.slow
def test_killed_at_many_points_it_completes_with_the_same_bytes(tmp_path: Path, sources: Path) -> None:
    with interrupted(0) as lines:
        maker(sources, str(tmp_path / "out")).run()
    points = random.Random(3).sample(range(1, lines[0] - END), KILLS // 2)
    points += range(lines[0] - END, lines[0], 2 * END // KILLS)  # while parts are joined, and removed
    command = [sys.executable, "-m", "tests.tools.corpus_making", sources, tmp_path / "killed", *map(str, points)]
    ended = completed(command, 60, cwd=Path(__file__).parents[3])
    assert ended.stdout.split() == [str(int(signal.SIGKILL))] * len(points), ended.stderr
    for point in points:
        out = str(tmp_path / f"killed-{point}")
        maker(sources, out).run()
        assert contents(out) == contents(str(tmp_path / "whole")), f"killed at line {point} of {lines[0]}"
    assert left(tmp_path) == {f"killed-{point}" for point in points}


def test_in_an_object_store_it_goes_on_as_well(sources: Path, tmp_path: Path) -> None:
    folder = f"memory://{uuid.uuid4().hex}"
    for line in range(300, 901, 150):
        with pytest.raises(KeyboardInterrupt), interrupted(line):
            maker(sources, f"{folder}/out").run()
        assert not Storage(f"{folder}/out").exists(CARD)
    maker(sources, f"{folder}/out").run()
    assert contents(f"{folder}/out") == contents(str(tmp_path / "whole"))
    assert {name.split("/")[0] for name in Storage(folder).files()} == {"out"}


class Work:
    """The documents and records that are read; Ctrl-C comes at the one that is named `stop`."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.stop = ""

    def begin(self, name: str) -> None:
        if name == self.stop:
            raise KeyboardInterrupt
        self.done.append(name)

    def until(self, stop: str, folder: Path, output: Path, **settings: object) -> None:
        """Make a corpus until then."""
        self.stop = stop
        with pytest.raises(KeyboardInterrupt):
            maker(folder, str(output), **settings).run()
        self.stop, self.done = "", []


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    found, record = Work(), Chunker.record

    def read(name: str, uri: str) -> list[Document]:
        found.begin(name)
        return read_document(name, uri)

    def recorded(self: Chunker, passage: Passage) -> list[TextPiece]:
        found.begin(passage.id)
        return record(self, passage)

    monkeypatch.setattr(corpus_maker, "read_document", read)
    monkeypatch.setattr(Chunker, "record", recorded)
    return found


ALL = ["docs/a.md", "1", "3", "1", "9", "4", "5", "6", "docs/a.md", "docs/blank.txt", "docs/deep/b.txt"]


def test_what_was_read_is_not_read_again_also_within_a_file(tmp_path: Path, sources: Path, work: Work) -> None:
    maker(sources, str(tmp_path / "out")).run()
    assert work.done == ALL
    for stop in ("3", "6", "docs/deep/b.txt"):
        work.until(stop, sources, tmp_path / "new")
        said: list[str] = []
        maker(sources, str(tmp_path / "new"), said).run()
        assert work.done == ALL[ALL.index(stop) :]
        assert said[0].startswith("going on after ") and "earlier run" in said[0]
    assert contents(str(tmp_path / "new")) == contents(str(tmp_path / "whole"))


def test_a_part_has_many_small_files_and_a_file_many_parts(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrad.data.corpus_parts._MOST_SECONDS", 1e9)
    written: list[str] = []
    write = Storage.write
    monkeypatch.setattr(Storage, "write", lambda self, name, data: (written.append(name), write(self, name, data)))
    for most, fewest, parts in ((0, 13, 13), (150, 2, 12), (1_000_000, 1, 1)):
        monkeypatch.setattr("regrad.data.corpus_parts._MOST_BYTES", most)
        written.clear()
        maker(sources, str(tmp_path / "out")).run()
        assert contents(str(tmp_path / "out")) == contents(str(tmp_path / "whole"))
        assert fewest <= sum(name.endswith(".part") for name in written) <= parts


def test_of_files_that_have_changed_all_from_the_first_on_is_made_again(
    tmp_path: Path, sources: Path, work: Work
) -> None:
    out = tmp_path / "out"
    work.until("docs/deep/b.txt", sources, out)
    (sources / "records" / "c.jsonl").write_text(json.dumps({"id": "7", "text": "Seven."}))
    said: list[str] = []
    maker(sources, str(out), said).run()
    assert work.done == ["7", *ALL[6:]]
    assert said[0].startswith("settings or files have changed: ") and said[1].startswith("going on after ")
    maker(sources, str(tmp_path / "fresh")).run()
    assert contents(str(out)) == contents(str(tmp_path / "fresh"))


def test_a_file_that_comes_in_between_or_goes_is_a_change(tmp_path: Path, sources: Path, work: Work) -> None:
    for change in (lambda: (sources / "records" / "bb.tsv").write_text("8\tEight.\t\n"), lambda: remove(sources)):
        work.until("docs/deep/b.txt", sources, tmp_path / "out")
        change()
        maker(sources, str(tmp_path / "out")).run()
        assert ALL[4] in work.done and ALL[2] not in work.done
        maker(sources, str(tmp_path / "fresh")).run()
        assert contents(str(tmp_path / "out")) == contents(str(tmp_path / "fresh"))


def remove(sources: Path) -> None:
    (sources / "records" / "bb.tsv").unlink()


def test_a_file_of_another_time_or_at_the_end_of_a_link_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.txt").write_text("One.")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "a.jsonl").symlink_to(tmp_path / "there" / "a.txt")
    (before,) = corpus_files(str(tmp_path / "link"))
    assert corpus_files(str(tmp_path / "link")) == [before]
    os.utime(tmp_path / "there" / "a.txt", (1, 1))
    (after,) = corpus_files(str(tmp_path / "link"))
    assert (after.uri, after.bytes) == (before.uri, before.bytes)
    assert after.version != before.version


@pytest.mark.parametrize("change", ["max_tokens", "software", "sources"])
def test_with_other_settings_or_libraries_it_begins_again(
    tmp_path: Path, sources: Path, work: Work, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    work.until("docs/deep/b.txt", sources, tmp_path / "out")
    settings: dict[str, object] = {"max_tokens": {"max_tokens": 20}}.get(change, {})
    if change == "software":  # such as the readers of PDF and HTML, which are an extra
        monkeypatch.setattr(corpus_maker, "_software", lambda: {"pypdf": "7"})
    if change == "sources":
        settings = {"sources": (str(sources / "docs"),)}
    said: list[str] = []
    maker(sources, str(tmp_path / "out"), said, **settings).run()
    assert work.done[0] == ("a.md" if change == "sources" else ALL[0])
    assert len(said) == 1 and "have changed" in said[0]
    maker(sources, str(tmp_path / "fresh"), **settings).run()
    assert contents(str(tmp_path / "out")) == contents(str(tmp_path / "fresh"))
    assert left(tmp_path) == {"fresh"}


def test_parts_of_a_run_that_was_given_up_are_never_joined_with_others(
    tmp_path: Path, sources: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.until("docs/deep/b.txt", sources, tmp_path / "out")
    work.until("3", sources, tmp_path / "out", max_tokens=20)  # leaves two parts
    monkeypatch.setattr("regrad.data.corpus_parts._MOST_SECONDS", 1e9)
    monkeypatch.setattr("regrad.data.corpus_parts._MOST_BYTES", 150)
    work.until("6", sources, tmp_path / "out")  # larger parts, and as many as were given up have other places
    maker(sources, str(tmp_path / "out")).run()
    assert contents(str(tmp_path / "out")) == contents(str(tmp_path / "whole"))


def test_a_strict_run_that_is_repaired_goes_on_and_a_run_that_becomes_strict_finds_the_first_fault(
    tmp_path: Path, sources: Path, work: Work
) -> None:
    (folder := tmp_path / "notes").mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(f"Note {number}." if number != 3 else "---")
    settings = {"sources": (str(folder),), "strict": True}
    with refused(CorpusError, "rejected", where=f"{folder}/3.txt"):
        maker(folder, str(tmp_path / "out"), **settings).run()
    (folder / "3.txt").write_text("Note 3.")
    work.done.clear()
    maker(folder, str(tmp_path / "out"), **settings).run()
    assert work.done == ["3.txt", "4.txt"]
    (folder / "3.txt").write_text("---")
    work.until("4.txt", folder, tmp_path / "out", sources=(str(folder),))
    with refused(CorpusError, "rejected", where=f"{folder}/3.txt"):
        maker(folder, str(tmp_path / "out"), **settings).run()


def test_a_second_run_into_the_same_output_is_refused_and_disturbs_nothing(tmp_path: Path, sources: Path) -> None:
    out = str(tmp_path / "out")
    with exclusive(Storage(out), RuntimeError), refused(CorpusError, "busy", uri=out):
        maker(sources, out).run()
    maker(sources, out).run()
    assert contents(out) == contents(str(tmp_path / "whole"))
    assert not left(tmp_path)


def test_without_a_usable_passage_nothing_is_left(tmp_path: Path, sources: Path) -> None:
    with refused(CorpusError, "empty"):
        maker(sources, str(tmp_path / "out"), sources=(str(sources / "docs" / "blank.txt"),)).run()
    assert not left(tmp_path)


def test_a_part_that_another_version_has_written_is_made_again(tmp_path: Path, sources: Path, work: Work) -> None:
    work.until("4", sources, tmp_path / "out")
    second = tmp_path / ".out.parts" / "00000001.part"
    assert second.exists()
    second.write_text("{}")
    maker(sources, str(tmp_path / "out")).run()
    assert work.done == ALL[1:]
    assert contents(str(tmp_path / "out")) == contents(str(tmp_path / "whole"))


def test_progress_says_how_much_is_read(tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_maker, "_EVERY_SECONDS", -1.0)
    said: list[str] = []
    maker(sources, str(tmp_path / "out"), said).run()
    shares = [int(line.partition("%")[0]) for line in said]
    assert shares == sorted(shares) and shares[0] == 0 and 80 < shares[-1] <= 100
    assert f"{sources}/records/c.jsonl: " in said[6]
