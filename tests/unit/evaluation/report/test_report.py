"""The directory of a run, and the report that is made of it alone."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrad.data.passages import Passage
from regrad.errors import EvaluationError, StorageError
from regrad.evaluation.output import CellResult, Output, Seconds, plan_of
from regrad.evaluation.plan import PlannedCell, make_plan
from regrad.evaluation.records import Record
from regrad.evaluation.report.entries import gather
from regrad.evaluation.report.tables import CellText, Grid, cost_grid, detail_grid, number, score_grid, size
from regrad.evaluation.report.writing import latex, markdown, write_report
from regrad.models.config import ModelConfig
from tests.tools.evaluating import record, settings, write_set
from tests.tools.refusals import refused

Damage = Callable[[bytes], bytes]
NASTY = "a|b <script>alert(1)</script> & 50% $x_1$ \\[*]"


class Tags(HTMLParser):
    """Every tag of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folder(tmp_path: Path, passages: list[Passage]) -> Path:
    write_set(tmp_path, passages)
    return tmp_path


def result(cell: PlannedCell, right: Sequence[bool], **changes: Any) -> CellResult:
    where = {"set": cell.set.name, "method": cell.method.name, "model": cell.model_name, "k": cell.k, "seed": cell.seed}
    records: list[Record] = [record(f"q{n}", one, **where | changes) for n, one in enumerate(right)]
    return CellResult(records, Seconds(0.6, 0.2, 0.4), "a processor")


def planned(folder: Path, tiny_path: Path, **changes: Any) -> tuple[Output, list[PlannedCell]]:
    config = settings(folder, ModelConfig(path=str(tiny_path)), **changes)
    cells, output = make_plan(config), Output(config.output)
    assert output.start(plan_of(config, cells), cells) == cells
    return output, cells


def test_a_cell_that_is_done_is_not_run_again_until_its_key_changes(folder: Path, tiny_path: Path) -> None:
    config = settings(folder, ModelConfig(path=str(tiny_path)))
    output, cells = planned(folder, tiny_path)
    output.save(cells[1], result(cells[1], [True] * 6), rows=32)
    assert output.start(plan_of(config, cells), cells) == [cells[0], cells[2]]
    longer = settings(folder, ModelConfig(path=str(tiny_path)), max_new_tokens=9)
    more = make_plan(longer)
    assert len(output.start(plan_of(longer, more), more)) == 3


def test_something_else_at_the_output_is_left_alone(folder: Path, tiny_path: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("mine")
    config = settings(folder, ModelConfig(path=str(tiny_path)))
    cells = make_plan(config)
    with refused(StorageError, "occupied"):
        Output(config.output).start(plan_of(config, cells), cells)


def test_marks_stand_where_both_tests_agree_after_correction(folder: Path, tiny_path: Path) -> None:
    output, cells = planned(folder, tiny_path, compare_to="rag", metric="em")
    direct, rag1, rag3 = cells
    output.save(direct, result(direct, [n < 2 for n in range(40)]), rows=32)
    output.save(rag1, result(rag1, [True] * 40), rows=32)
    output.save(rag3, result(rag3, [n > 0 for n in range(40)]), rows=32)
    entries = {(entry.method, entry.k): entry for entry in gather(output, output.planned())}
    against = entries["direct", 0].against
    assert against is not None and against.difference == pytest.approx(-0.95) and against.holm_t < 0.001
    assert entries["rag", 1].against is None and entries["rag", 3].against is None
    assert entries["direct", 0].low < 0.05 < entries["direct", 0].high
    write_report(output)
    assert "| direct | - | 5.0 ▼ " in (folder / "out" / "report.md").read_text()
    assert "| rag | 1 | **100.0** " in (folder / "out" / "report.md").read_text()


def test_methods_with_retrievers_of_their_own_are_told_apart_by_a_column(folder: Path, tiny_path: Path) -> None:
    output, cells = planned(folder, tiny_path, methods=["direct", "rag", "pe-rag"], k=[1])
    cards = [replace(cell, retriever=kind) for cell, kind in zip(cells, ("", "bm25", "dense"), strict=True)]
    for cell in cards:
        output.save(cell, result(cell, [True, False] * 3), rows=32)
    entries = gather(output, plan_of(settings(folder, ModelConfig(path=str(tiny_path)), k=[1]), cards))
    grid = score_grid("all", entries, "f1", None)
    assert (grid.head[:3], grid.names) == (("method", "passages by", "k"), 3)
    assert [row[1].text for row in grid.rows] == ["-", "bm25", "dense"]
    assert score_grid("one", entries[:2], "f1", None).head == ("method", "k", "people")
    assert [row[3].text for row in detail_grid(entries, None).rows] == ["-", "bm25", "dense"]


def test_how_demonstrations_are_chosen_is_a_column_where_there_are_any(folder: Path, tiny_path: Path) -> None:
    """And what searching for them takes is a cost of methods without passages, too."""
    output, cells = planned(folder, tiny_path, methods=["direct", "rag", "pe-rag"], k=[1])
    for cell in cells:
        output.save(cell, result(cell, [True, False] * 3), rows=32)
    plan = plan_of(settings(folder, ModelConfig(path=str(tiny_path)), k=[1]), cells)
    chosen = ("3 nearest", "3 first", "")
    cards = [card.model_copy(update={"demonstrations": how}) for card, how in zip(plan.cells, chosen, strict=True)]
    without, entries = gather(output, plan), gather(output, plan.model_copy(update={"cells": tuple(cards)}))
    grid = detail_grid(entries, None)
    assert (grid.head[4], grid.names) == ("demonstrations", 5)
    assert [row[4].text for row in grid.rows] == ["3 nearest", "3 first", "-"]
    assert "demonstrations" not in detail_grid(without, None).head
    times = [[row[4].text for row in cost_grid(found).rows] for found in (without, entries)]
    assert times == [["-", "100", "100"], ["100", "100", "100"]]


def test_seeds_are_averaged_by_question_before_anything_is_tested(folder: Path, tiny_path: Path) -> None:
    output, cells = planned(folder, tiny_path, methods=["rag"], k=[1], seeds=[0, 1], metric="em")
    output.save(cells[0], result(cells[0], [True] * 6), rows=32)
    output.save(cells[1], result(cells[1], [False] * 6), rows=32)
    (entry,) = gather(output, output.planned())
    assert (entry.questions, entry.seeds, entry.value) == (6, 2, 0.5)
    assert set(entry.by_question.values()) == {0.5}


def test_costs_and_unparsable_answers_are_counted(folder: Path, tiny_path: Path) -> None:
    output, cells = planned(folder, tiny_path, methods=["direct"])
    output.save(cells[0], result(cells[0], [False] * 6, parsed=False, bytes_fetched=3000), rows=32)
    write_report(output)
    (row,) = json.loads((folder / "out" / "report.json").read_text())
    assert (row["unparsable"], row["milliseconds"], row["bytes_fetched"]) == (6, 4.0, 3000)
    assert row["retrieval_ms"] == pytest.approx(100)
    assert (row["preparation_ms"], row["storage_bytes"]) == (None, None)


@pytest.mark.slow
def test_a_set_of_open_and_closed_questions_says_what_its_score_is_made_of(folder: Path, tiny_path: Path) -> None:
    output, cells = planned(folder, tiny_path, methods=["direct"])
    whole = result(cells[0], [True, False, True, True])
    kinds = ("open", "open", "yes-no", "choice")
    mixed = [replace(one, kind=kind) for one, kind in zip(whole.records, kinds, strict=True)]
    report = folder / "out" / "report.md"
    for records, heading in (
        (mixed, "F1 (accuracy of closed questions) in points"),
        (mixed[:2], "F1 in points"),
        (mixed[2:], "Accuracy in points"),
    ):
        output.save(cells[0], replace(whole, records=records), rows=32)
        write_report(output)
        assert heading in report.read_text()
        said = (
            "people mixes kinds of questions (2 open, 1 yes-no, 1 choice): the closed ones count with their accuracy."
        )
        assert (said in report.read_text()) is (records is mixed)
        assert ("mixes kinds" in report.read_text()) is (records is mixed)


@pytest.mark.slow
def test_closed_questions_have_both_readers_numbers_in_one_report(folder: Path, tiny_path: Path) -> None:
    output, cells = planned(folder, tiny_path, methods=["direct"])
    closed = result(cells[0], [True, True, False, False], kind="yes-no").records
    # The release's reader finds an answer in all four, and the third one right; the strict one finds none in the last.
    closed = [replace(one, release_correct=n < 3) for n, one in enumerate(closed)]
    closed[3] = replace(closed[3], parsed=False, strict_parsed=False)
    opened = replace(result(cells[0], [True]).records[0], question_id="q9")
    output.save(cells[0], replace(result(cells[0], []), records=[*closed, opened]), rows=32)
    write_report(output)
    (row,) = json.loads((folder / "out" / "report.json").read_text())
    assert {name: (found["accuracy"], found["unparsable"]) for name, found in row["readers"].items()} == {
        "strict": (0.5, 1),
        "release": (0.75, 0),
    }
    assert row["value"] == pytest.approx(3 / 5), "the scores are by the set's own reader"
    for name in ("report.md", "report.html", "report.tex"):
        assert "Closed questions by both readers" in (folder / "out" / name).read_text()
    lines = (folder / "out" / "report.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("|") and "closed questions" in line)
    assert (
        head == "| model | set | method | k | closed questions | strict | strict, unread | release | release, unread |"
    )
    (found,) = (line for line in lines if line.startswith("| tiny | people | direct | - | 4 |"))
    assert "| 50.0 " in found and "| 75.0 " in found and found.endswith("| 0 |")

    output.save(cells[0], result(cells[0], [True] * 6), rows=32)
    write_report(output)
    assert "both readers" not in (folder / "out" / "report.md").read_text()
    assert json.loads((folder / "out" / "report.json").read_text())[0]["readers"] == {}


def test_an_unfinished_run_has_a_report_that_says_so(folder: Path, tiny_path: Path) -> None:
    output, cells = planned(folder, tiny_path)
    with refused(EvaluationError, "no_cell_done"):
        write_report(output)
    output.save(cells[0], result(cells[0], [True] * 6), rows=32)
    write_report(output)
    assert "2 of 3 cells are not done yet" in (folder / "out" / "report.md").read_text()


def test_a_report_can_be_of_a_plan_that_another_run_has_replaced(folder: Path, tiny_path: Path) -> None:
    output, cells = planned(folder, tiny_path)
    for cell in cells:
        output.save(cell, result(cell, [True] * 6), rows=32)
    ours = output.planned()
    planned(folder, tiny_path, methods=["pe-rag"])
    write_report(output, ours)
    assert {row["method"] for row in json.loads((folder / "out" / "report.json").read_text())} == {"direct", "rag"}


def test_two_runs_do_not_write_to_one_output(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    busy = refused(EvaluationError, "output_busy", uri=output.storage.uri)
    with output.alone(), busy, output.alone():
        pytest.fail("a second run was let in")
    with output.alone():
        pass
    assert list(tmp_path.iterdir()) == []


def test_names_of_users_are_text_everywhere(folder: Path, tiny_path: Path) -> None:
    one = {
        "name": NASTY,
        "path": str(folder / "questions.jsonl"),
        "passages": {"source": "gold", "corpus": str(folder / "corpus.jsonl")},
    }
    method = {"name": NASTY, "method": "rag"}
    output, cells = planned(folder, tiny_path, sets=[one], methods=[method])
    for cell in cells:
        output.save(cell, result(cell, [True, False] * 3), rows=32)
    write_report(output)
    page = Tags((folder / "out" / "report.html").read_text())
    assert "script" not in page.tags
    assert NASTY in page.text
    text = (folder / "out" / "report.md").read_text()
    assert "<script" not in text and "a\\|b" in text
    assert r"50\% \$x\_1\$ \textbackslash{}[*]" in (folder / "out" / "report.tex").read_text()


@pytest.mark.slow
def test_the_same_records_give_the_same_report(folder: Path, tiny_path: Path) -> None:
    output, cells = planned(folder, tiny_path, compare_to="direct")
    for cell in cells:
        output.save(cell, result(cell, [True, False] * 3), rows=32)
    write_report(output)
    first = {path.name: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    write_report(output)
    assert {path.name: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()} == first
    assert {"report.html", "report.tex", "sweep-0-0.svg", "scores-0.pdf", "costs-0.svg"} <= first.keys()


@pytest.mark.parametrize("damage", [b"{", b'{"format": 99}', b"[]"])
def test_a_damaged_plan_is_a_clear_error(folder: Path, tiny_path: Path, damage: bytes) -> None:
    output, _ = planned(folder, tiny_path)
    (folder / "out" / "plan.json").write_bytes(damage)
    with refused(EvaluationError, "plan_damaged"):
        write_report(output)


def damaged(folder: Path, tiny_path: Path, damage: Damage) -> tuple[Output, list[PlannedCell]]:
    """A run that is done, and then its second cell's file is damaged."""
    output, cells = planned(folder, tiny_path)
    for cell in cells:
        output.save(cell, result(cell, [True] * 6), rows=32)
    path = folder / "out" / "cells" / f"{cells[1].name}.parquet"
    path.write_bytes(damage(path.read_bytes()))
    return output, cells


def invalid(data: bytes) -> bytes:
    """The same table with a text that is not UTF-8."""
    table, file = pq.read_table(io.BytesIO(data)), io.BytesIO()
    texts = pa.array([b"\xff"] * len(table)).view(pa.string())
    pq.write_table(table.set_column(table.column_names.index("raw"), "raw", texts), file)
    return file.getvalue()


def empty(data: bytes) -> bytes:
    """The same columns without a row."""
    file = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(data)).slice(0, 0), file)
    return file.getvalue()


DAMAGES = pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", invalid, empty])


@DAMAGES
def test_a_damaged_cell_is_run_again(
    folder: Path, tiny_path: Path, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    output, cells = damaged(folder, tiny_path, damage)
    config = settings(folder, ModelConfig(path=str(tiny_path)))
    assert output.start(plan_of(config, cells), cells) == [cells[1]]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{cells[1].name}.parquet is damaged: the cell is run again" in line
    output.save(cells[1], result(cells[1], [True] * 6), rows=32)
    assert output.start(plan_of(config, cells), cells) == []


@pytest.mark.slow
@DAMAGES
def test_a_report_leaves_a_damaged_cell_out_and_says_so(
    folder: Path, tiny_path: Path, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    output, cells = damaged(folder, tiny_path, damage)
    write_report(output)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{cells[1].name}.parquet is damaged: the cell counts as not done" in line
    assert "1 of 3 cells are not done yet" in (folder / "out" / "report.md").read_text()
    rows = json.loads((folder / "out" / "report.json").read_text())
    assert [(row["method"], row["k"]) for row in rows] == [("direct", 0), ("rag", 3)]


def test_what_is_no_damage_but_a_refusal_is_an_error(
    folder: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, _ = planned(folder, tiny_path)

    def refuse(*arguments: Any) -> None:
        raise StorageError("cannot read it", code="refused")

    monkeypatch.setattr(output.storage, "read", refuse)
    with refused(StorageError, "refused"):
        output.sound("any", "is run again")


def test_a_directory_without_a_run_is_a_clear_error(tmp_path: Path) -> None:
    with refused(EvaluationError, "run_not_found", uri=str(tmp_path)):
        write_report(Output(str(tmp_path)))


def test_latex_and_markdown_tables() -> None:
    grid = Grid("T", "N", ("method", "a_b"), ((CellText("x"), CellText("1.0", "[0, 2]", strong=True, sign="+")),))
    assert r"x & \textbf{1.0}$^{+}$ {\scriptsize [0, 2]} \\" in latex([grid], [])
    assert r"method & a\_b \\" in latex([grid], [])
    assert "| x | **1.0** ▲ \\[0, 2\\] |" in markdown("R", [], [grid], [])


def test_numbers_of_a_table() -> None:
    assert [number(None), number(0.0), number(2.345), number(1234.5)] == ["-", "0", "2.35", "1,234"]
    assert [size(None), size(0), size(589_824), size(3.5e12)] == ["-", "0 B", "589.8 kB", "3.5 TB"]
