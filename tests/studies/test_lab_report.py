"""The lab report's claims and document, from made-up records: claims that come out true, and false."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from regrad.cli.main import regrad
from regrad.data.augmented import Augmented, Pair, encode_augmented
from regrad.data.passages import Passage, encode_passages
from regrad.errors import ConfigError, EvaluationError
from regrad.evaluation.output import CellCard, Planned
from regrad.evaluation.records import Record, write_records
from regrad.rebuild.steps import begun
from regrad.storage import Storage
from studies.lab_report.claims import paper_claims
from studies.lab_report.claims.claim import Claim, corrected, fact, less_than, more, ratio_above, ratio_below
from studies.lab_report.config import LabReportConfig
from studies.lab_report.findings import duels, gaps
from studies.lab_report.plan import make_steps
from studies.lab_report.records import Measured, Table
from studies.lab_report.report import write_report
from studies.running import Progress, next_step
from tests.tools.evaluating import record
from tests.tools.refusals import refused

QUESTIONS = 200


def scores(share: float, count: int = QUESTIONS, seed: int = 0) -> dict[str, float]:
    """So large a share right; with the same seed a larger share has all that a smaller one has."""
    right = set(random.Random(seed).sample(range(count), count)[: round(share * count)])
    return {f"q{number}": float(number in right) for number in range(count)}


def test_more_needs_the_right_side_and_a_small_p() -> None:
    assert more("", scores(0.9), scores(0.5, seed=1)).holds
    assert not more("", scores(0.5), scores(0.9, seed=1)).direction
    same = more("", scores(0.5), scores(0.5))
    assert (same.value, same.direction, same.p) == (0.0, False, 1.0)
    found = more("", scores(0.60), scores(0.5, seed=1))
    tried = more("", scores(0.60), scores(0.5, seed=1), tries=3)
    assert found.p is not None
    assert tried.p == pytest.approx(min(1.0, 3 * found.p))


def test_a_margin_is_a_test_of_its_own() -> None:
    close = less_than("", scores(0.01), scores(0.0), 0.05)
    assert (close.value, close.holds) == (pytest.approx(1.0), True)
    far = less_than("", scores(0.2), scores(0.0), 0.05)
    assert (far.value, far.direction) == (pytest.approx(20.0), False)
    unsure = less_than("", scores(0.04), scores(0.0), 0.05)
    assert unsure.direction
    assert not unsure.holds, "inside the margin, but the interval reaches beyond it"


def test_ratios_are_geometric_means() -> None:
    twice = ratio_above("", [2.0, 4.0] * 20, [1.0, 2.0] * 20)
    assert twice.value == pytest.approx(2.0)
    assert twice.holds
    assert not ratio_below("", [2.0, 4.0] * 20, [1.0, 2.0] * 20, 1.3).direction
    assert ratio_below("", [1.1, 2.1] * 20, [1.0, 2.0] * 20, 1.3).holds


def test_rows_with_other_questions_are_refused() -> None:
    with refused(EvaluationError, "different_questions"):
        more("", scores(0.5), scores(0.5, count=10))


def claim(*parts: object, number: int = 1) -> Claim:
    return Claim(number, "s", "m", parts)  # type: ignore[arg-type]


def test_a_claim_needs_all_its_parts_and_the_correction_over_all() -> None:
    strong, weak = more("", scores(0.9), scores(0.2, seed=1)), more("", scores(0.58), scores(0.5, seed=1))
    assert claim(strong).reproduced
    assert claim(strong, weak).p == weak.p
    assert not claim(strong, more("", scores(0.2), scores(0.9, seed=1))).reproduced
    assert claim(strong, fact("", 0, True)).reproduced
    assert not claim(strong, fact("", 3, False)).reproduced
    assert claim(fact("", 0, True)).p == 1.0, "a count alone proves nothing"
    middling = more("", scores(0.53), scores(0.5))
    assert middling.p is not None
    assert 0.006 < middling.p < 0.05
    adjusted = corrected([claim(middling, number=number) for number in range(9)])
    assert [one.p for one in adjusted] == [pytest.approx(9 * middling.p)] * 9
    assert not any(one.reproduced for one in adjusted)


Shares = Mapping[tuple[str, str, str, int], float]

METHODS = {"direct": 0.02, "rag": 0.9, "cpt": 0.1, "prag": 0.5, "regrad": 0.9, "regrad+icl": 1.0, "regrad-online": 0.9}


def as_in_the_paper() -> dict[tuple[str, str, str, int], float]:
    """Shares that make every claim true."""
    found = {("methods", "people", name, 0 if name in ("direct", "cpt") else 3): s for name, s in METHODS.items()}
    found["methods", "people", "direct", 0] = 0.2
    found["methods", "people", "raw gradients", 3] = 0.05
    found["methods", "people", "rag", 1] = 0.9
    found["passages", "random", "direct", 0] = 0.2
    for name, start, fall in (("rag", 0.9, 0.02), ("regrad", 0.99, 0.02), ("regrad+icl", 1.0, 0.01)):
        for k in (1, 3, 5):
            found["passages", "people", name, k] = start - fall * k
            found["passages", "gold and random", name, k] = start - fall * k
            found["passages", "random", name, k] = 0.2
    for k, share in ((1, 0.3), (3, 0.7), (5, 0.4)):
        found["notes", "many", "regrad", k] = share
        found["notes", "many", "rag", k] = 0.5
        found["notes", "many", "regrad+icl", k] = 0.99
    for name, cpt, ours in (("documents-1", 0.2, 0.2), ("documents-2", 0.5, 0.5), ("documents-4", 0.2, 0.95)):
        found["drift", name, "cpt", 0], found["drift", name, "rag", 3] = cpt, ours
        found["drift", name, "regrad", 3] = ours
        found["drift", name, "direct", 0] = 0.2
        found["general", "memorised", f"cpt, {name}", 0] = 0.5
    found["general", "memorised", "direct", 0] = 1.0
    for name in ("raw gradients", "regrad", "rag"):
        found["general", "memorised", name, 3] = 0.7
    found["general", "memorised, own passages", "raw gradients", 3] = 0.6
    found["hard", "long", "rag", 3], found["hard", "long", "regrad", 3] = 0.9, 0.3
    firms = {
        "trained on people": 0.02,
        "continued on both": 0.9,
        "continued on firms": 0.9,
        "rag": 0.02,
        "direct": 0.02,
    }
    for name, share in firms.items():
        found["domains", "firms", name, 0 if name == "direct" else 3] = share
        found["domains", "people", name, 0 if name == "direct" else 3] = 0.9
    for merge, falls in (("sum", (2, 4)), ("mean", (4, 8)), ("relative", (0, 0))):
        for k, fall in zip((1, 3, 5), (0, *falls), strict=True):
            found["merges", "people", merge, k] = 1 - fall / 100
    return found


def table(shares: Shares) -> Table:
    studies: dict[str, list[Record]] = {}
    for (name, of, method, k), share in shares.items():
        rows = scores(share)
        studies.setdefault(name, []).extend(
            record(question, bool(value), method, set=of, k=k) for question, value in rows.items()
        )
    return Table(studies)


def measured(**changes: object) -> Measured:
    times = {"direct": [10.0, 11.0] * 20, "regrad": [11.0, 12.0] * 20, "regrad-online": [20.0, 22.0] * 20}
    values = {
        **{"latency": times, "different": 0, "alone": [2.0, 2.1] * 6, "together": [1.0, 1.0] * 6},
        **{"questions": 192, "unchanged": True, "bytes": {"text": 200.0}},
    }
    return Measured(**values | changes)  # type: ignore[arg-type]


def test_all_nine_are_reproduced_where_all_is_as_in_the_paper() -> None:
    claims = paper_claims(table(as_in_the_paper()), measured())
    assert [one.id for one in claims] == list(range(1, 10))
    assert {one.id: one.reproduced for one in claims} == dict.fromkeys(range(1, 10), True)
    assert all(one.p < 0.05 for one in claims)
    json = claims[2].to_json()
    assert {"id", "statement", "value", "interval", "p", "reproduced"} <= set(json)


def changed(*changes: tuple[tuple[str, str, str, int], float]) -> Callable[[], Shares]:
    return lambda: as_in_the_paper() | dict(changes)


def wrong() -> Iterator[tuple[int, Callable[[], Shares]]]:
    """Each makes one claim false and leaves the others."""
    yield 1, changed((("notes", "many", "rag", 1), 1.0))
    yield 2, changed((("methods", "people", "raw gradients", 3), 0.45))
    yield 3, changed((("passages", "random", "regrad", 3), 0.5))
    yield 4, changed((("notes", "many", "regrad", 1), 0.8))
    yield 5, changed(*(((("passages", "gold and random", "rag", k)), 1.0) for k in (1, 3, 5)))
    yield 6, changed((("drift", "documents-4", "cpt", 0), 0.6))
    yield 7, changed((("domains", "firms", "trained on people", 3), 0.9))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "shares"), list(wrong()), ids=lambda value: str(value))
def test_a_claim_that_the_records_deny_is_not_reproduced(number: int, shares: Callable[[], Shares]) -> None:
    claims = paper_claims(table(shares()), measured())
    assert [one.id for one in claims if not one.reproduced] == [number]


@pytest.mark.slow
def test_slow_or_different_answers_deny_the_last_two() -> None:
    slow = measured(latency={**measured().latency, "regrad": [15.0, 16.0] * 20})
    assert [c.id for c in paper_claims(table(as_in_the_paper()), slow) if not c.reproduced] == [8]
    different = measured(different=1)
    assert [c.id for c in paper_claims(table(as_in_the_paper()), different) if not c.reproduced] == [9]


def test_gaps_are_of_the_best_merge_that_does_not_trust_the_rank() -> None:
    found = gaps(table(as_in_the_paper()))
    assert found["gap_variant"] == "sum"
    assert (found["k3_gap"], found["k5_gap"]) == (pytest.approx(2.0), pytest.approx(4.0))
    assert found["k5_gap_relative"] == 0.0


@pytest.mark.slow
def test_duels_say_where_rag_wins() -> None:
    found = {(d.rag.study, d.rag.set, d.rag.k): d.verdict for d in duels(table(as_in_the_paper()))}
    assert found["notes", "many", 5] == "ReGrad"
    worse = as_in_the_paper() | {("notes", "many", "regrad+icl", 1): 0.1, ("notes", "many", "regrad", 1): 0.1}
    again = {(d.rag.study, d.rag.set, d.rag.k): d.verdict for d in duels(table(worse))}
    assert again["notes", "many", 1] == "RAG"


def test_prag_is_met_where_it_is_best() -> None:
    shares = as_in_the_paper() | {("methods", "people", "prag, mean", 1): 0.97, ("methods", "people", "prag", 1): 0.6}
    first = paper_claims(table(shares), measured())[0]
    (part,) = (part for part in first.parts if "PRAG" in part.text)
    assert "at its best (prag, mean, k=1)" in part.text
    assert not part.direction
    assert not first.reproduced


@pytest.mark.slow
def test_parallel_is_neither_faster_nor_slower() -> None:
    shares = as_in_the_paper()
    for k in (1, 3, 5):
        shares["passages", "gold and random", "rag", k] = 0.9 - 0.3 * (k == 5)
    fifth = paper_claims(table(shares), measured())[4]
    assert [part.direction for part in fifth.parts] == [True, True, False]
    assert not fifth.reproduced
    assert any("RAG falls at k=5 alone" in note for note in fifth.notes)


def test_a_missing_row_is_named() -> None:
    shares = as_in_the_paper()
    del shares["drift", "documents-2", "cpt", 0]
    with refused(EvaluationError, "no_records", study="drift", set="documents-2", method="cpt", k=0):
        paper_claims(table(shares), measured())


def _asked(question: str) -> str:
    return "Does Ada sing?" if question in ("q1", "q2", "q3") else "Who?"


def write_run(folder: Path, shares: Shares) -> LabReportConfig:
    """A report's directory with these shares as records, and measurements."""
    studies: dict[str, list[CellCard]] = {}
    for number, ((name, of, method, k), share) in enumerate(shares.items()):
        values = scores(share).items()
        rows = [replace(record(q, bool(v), method, set=of, k=k, model="lab"), question=_asked(q)) for q, v in values]
        card = CellCard(name=f"cell-{number}", model="lab", set=of, method=method, k=k, seed=0, questions=QUESTIONS)
        write_records(Storage(f"{folder}/studies/{name}"), f"cells/{card.name}.parquet", rows)
        studies.setdefault(name, []).append(card)
    for name, cards in studies.items():
        planned = Planned(format=1, metric="em", compare_to=None, k=(3,), cells=tuple(cards))
        Storage(f"{folder}/studies/{name}").write("plan.json", planned.model_dump_json().encode())
    found = asdict(measured())
    batching = {name: found[name] for name in ("different", "alone", "together", "questions")}
    kept = {"latency": found["latency"], "batching": batching, "unchanged": True, "bytes": found["bytes"]}
    Storage(f"{folder}/documents").write("50.jsonl", encode_passages([Passage("ada", "Ada", "Ada sings.")]))
    (folder / "measured.json").write_text(json.dumps(kept))
    trained = Augmented(Passage("ada", "Ada", "Ada sings."), pairs=(Pair("Does Ada sing?", "yes"),))
    Storage(f"{folder}/lab").write("augmented.jsonl", encode_augmented([trained]))
    asked = [{"question": _asked(f"q{number}")} for number in range(QUESTIONS)]
    Storage(f"{folder}/lab").write("questions.jsonl", "".join(json.dumps(a) + "\n" for a in asked).encode())
    return LabReportConfig(output=str(folder), report=str(folder / "doc" / "report.md"))


@pytest.mark.slow
def test_the_document_says_what_the_claims_say_and_shows_every_figure(tmp_path: Path) -> None:
    config = write_run(tmp_path, as_in_the_paper() | {("methods", "people", "raw gradients", 3): 0.6})
    line = write_report(config, seconds=120.0)
    assert line.startswith(f"8 of 9 claims reproduced; report at {tmp_path}/doc/report.md")
    text = (tmp_path / "doc" / "report.md").read_text()
    assert "**8 of the 9 claims are reproduced.**" in text
    second = text.split("### 2. ")[1].split("### 3. ")[0]
    assert "**Not reproduced.**" in second
    assert "Direct has 20.0 on people it has never seen" in second
    assert "**Reproduced.**" in text.split("### 3. ")[1].split("### 4. ")[0]
    assert "3 questions about those that came first" in text
    assert "3 of the 200 questions asked here are among those, word for word" in text
    bars = (tmp_path / "doc" / "images" / "lab-report-methods.svg").read_text()
    methods = [key[2] for key in as_in_the_paper() if key[0] == "methods" and key[3] != 1]
    assert sorted(re.findall(r"<!-- ([a-z+, -]+) -->", bars)) == sorted([*methods, "exact match, points"])
    images = re.findall(r"\]\((images/[^)]+)\)", text)
    assert len(images) == len(set(images)) == 7
    for image in images:
        assert (tmp_path / "doc" / image).read_bytes().startswith(b"<?xml")
    found = json.loads((tmp_path / "report.json").read_text())
    assert [one["reproduced"] for one in found["claims"]] == [True, False, *[True] * 7]
    assert found["figures"]["k3_gap"] == pytest.approx(2.0)
    assert len(found["rows"]) == len(as_in_the_paper())
    assert found["seconds"] == 120.0
    write_report(config, seconds=120.0)
    assert (tmp_path / "doc" / "report.md").read_text() == text, "the same records give the same report"


def test_a_step_is_done_once_and_other_settings_are_refused(tmp_path: Path) -> None:
    config = LabReportConfig(output=str(tmp_path))
    progress, step = Progress(config.output), make_steps(config)[0]
    assert not progress.done(step)
    assert progress.clock() == 0.0
    progress.finish(begun(step.recorded), "made", 3.0, 7.0)
    assert progress.done(step)
    assert progress.clock() == 7.0
    more_records = make_steps(config.model_copy(update={"records": 5}))[0]
    with refused(EvaluationError, "other_settings", step="lab"):
        progress.done(more_records)
    other_seeds = make_steps(config.model_copy(update={"seeds": (7,)}))[0]
    assert progress.done(other_seeds), "the lab's files do not depend on the seeds"


def test_steps_are_begun_as_soon_as_they_can_be() -> None:
    config = LabReportConfig(output="/tmp/out")
    plan = {step.name: step for step in make_steps(config)}
    made = {name: replace(plan["lab"], name=name) for name in ("a", "b", "c")}
    made["c"] = replace(made["c"], needs=frozenset({"a", "gone"}))
    made |= {name: replace(plan["bank raw"], name=name, needs=frozenset()) for name in ("bank 1", "bank 2")}
    made["timed"] = replace(plan["measure"], name="timed", needs=frozenset())

    def chosen(waiting: str, running: str) -> str | None:
        steps = [[made[name] for name in names.split(",") if name] for names in (waiting, running)]
        found = next_step(steps[0], steps[1], workers=2)
        return found.name if found else None

    assert chosen("a,b", "") == "a"
    assert chosen("b,c", "a") == "b", "c waits for a"
    assert chosen("c", "a") is None
    assert chosen("c", "b") == "c"
    assert chosen("b", "a,c") is None, "two workers are busy"
    assert chosen("bank 2,b", "bank 1") == "b", "one bank at a time"
    assert chosen("timed,b", "a") == "b", "what is timed waits until nothing runs"
    assert chosen("timed,b", "") == "timed"
    assert chosen("b", "timed") is None


def test_without_the_repository_the_verb_says_where_the_report_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("studies")]:
        monkeypatch.setitem(sys.modules, name, None)
    result = CliRunner().invoke(regrad, ["lab", "report"])
    assert isinstance(result.exception, ConfigError) and result.exception.code == "config.study_not_installed"
