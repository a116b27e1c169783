"""Question sets of medicine and of law, and what must become of them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import EvaluationError
from tests.tools.refusals import refused
from tests.unit.data.test_question_sets import HOUSING, MEDQA, PUBMED, YES_NO, lines, read, write


def test_pubmedqa(tmp_path: Path) -> None:
    (found,) = read(write(tmp_path / "ori_pqal.json", {"21645374": PUBMED}), "pubmedqa")
    assert (found.kind, found.choices, found.answers) == ("yes-no", ("yes", "no", "maybe"), ("maybe",))
    assert found.passages == (Passage("21645374", "", "Cells die. We looked."),)
    assert found.passage_ids == ("21645374",)
    with refused(EvaluationError, "no_object"):
        read(write(tmp_path / "list.json", [PUBMED]), "pubmedqa")


def test_medqa_closed_and_open(tmp_path: Path) -> None:
    path = write(tmp_path / "test.jsonl", lines(MEDQA))
    (found,) = read(path, "medqa")
    assert (found.kind, found.answers, found.choices[1]) == ("choice", ("B",), "Nitrofurantoin")
    (found,) = read(path, "medqa", kind="open")
    assert (found.kind, found.answers, found.choices) == ("open", ("Nitrofurantoin",), ())


def test_bioasq_takes_its_yes_no_questions(tmp_path: Path) -> None:
    other = {**YES_NO, "id": "x", "type": "factoid", "exact_answer": [["a"], ["b"]]}
    (found,) = read(write(tmp_path / "training12b.json", {"questions": [other, YES_NO]}), "bioasq")
    assert (found.kind, found.choices, found.answers) == ("yes-no", ("yes", "no"), ("no",))
    assert found.passage_ids == ("15829955", "6650562")
    assert found.passages == (Passage("15829955/0", "", "It is complex."),)
    with refused(EvaluationError, "no_questions"):
        read(write(tmp_path / "none.json", {"questions": [other]}), "bioasq")


def test_casehold_in_each_of_its_forms(tmp_path: Path) -> None:
    holdings = ["h0", "h1", "h2", "h2", "h4"]
    columns = "example_id,citing_prompt,holding_0,holding_1,holding_2,holding_3,holding_4,label"
    csv = write(tmp_path / "test.csv", f'{columns}\n7,"It held, (<HOLDING>)",{",".join(holdings)},4\n')
    (found,) = read(csv, "casehold")
    assert found == Question("7", "It held, (<HOLDING>)", ("E",), "choice", tuple(holdings))
    lex_glue = {"context": "It held, (<HOLDING>)", "endings": holdings, "label": 4}
    (found,) = read(write(tmp_path / "lex.jsonl", lines(lex_glue)), "casehold")
    assert (found.answers, found.choices) == (("E",), tuple(holdings))


def test_learned_hands_family(tmp_path: Path) -> None:
    text = 'index\tanswer\ttext\n0\tYes\t"He said ""no""."\n1\tNo\tThe HOA refuses.\n'
    yes, no = read(write(tmp_path / "test.tsv", text), "learned-hands-family")
    assert (yes.id, yes.answers, no.answers, yes.kind) == ("0", ("yes",), ("no",), "yes-no")
    assert yes.question.startswith("Does the post discuss") and yes.question.endswith('\nPost: He said "no".')


def test_housingqa_as_it_is_published(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "questions.json.zip", "w") as archive:
        archive.writestr("questions.json", json.dumps([HOUSING]))
    (found,) = read(tmp_path / "questions.json.zip", "housingqa")
    assert (found.id, found.question, found.answers) == ("7", "In Alabama, as of 2021: Is there a law?", ("yes",))
    assert (found.passage_ids, found.group) == (("431263",), "12")
    assert found.passages == (Passage("431263", "ALA. CODE § 35-9A-441", "A landlord shall."),)
