"""Question sets: every published format in a file of its own making, and everything that may be wrong with one."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrad.data.passages import Passage
from regrad.data.question_sets import (
    PUBLISHED,
    READERS,
    QuestionSetConfig,
    published_checksum,
    read_queries,
    read_questions,
)
from regrad.data.questions import Question
from regrad.errors import ConfigError, EvaluationError
from regrad.lab.config import LabConfig
from regrad.lab.files import write_lab
from regrad.settings import parse_settings
from tests.tools.refusals import refused

HOTPOT = {
    "_id": "5a8b57f25542995d1e6f1371",
    "question": "Were Scott Derrickson and Ed Wood of the same nationality?",
    "answer": "yes",
    "type": "comparison",
    "level": "hard",
    "supporting_facts": [["Scott Derrickson", 0], ["Ed Wood", 0], ["Scott Derrickson", 1]],
    "context": [["Ed Wood", ["Ed Wood is a film.", " It is from 1994."]], ["Scott Derrickson", ["He directs."]]],
}
TWO_WIKI = {
    **HOTPOT,
    "_id": "8813f87c0bdd11eba7f7acde48001122",
    "answer": "Małgorzata Braunek",
    "type": "compositional",
    "answer_id": "Q274277",
    "evidences": [["Polish-Russian War", "director", "Xawery Żuławski"]],
}
SAMPLED = {"test_id": 0, "question": "Who?", "answer": ["Mask of Fu Manchu", "The Mask of Fu Manchu"]}
CWQ = {
    "ID": "WebQTest-1",
    "question": "What year?",
    "compositionality_type": "conjunction",
    "answers": [{"answer": "1966", "aliases": ["the year 1966"], "answer_id": "m.1"}, {"answer": None, "aliases": []}],
}
MUSIQUE = {
    "id": "3hop1__13548_13529_23",
    "question": "When?",
    "answer": "1961",
    "answer_aliases": ["in 1961"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "A", "paragraph_text": "Text a.", "is_supporting": False},
        {"idx": 1, "title": "B", "paragraph_text": "Text b.", "is_supporting": True},
    ],
}
PUBMED = {
    "QUESTION": "Do mitochondria play a role?",
    "CONTEXTS": ["Cells die.", "We looked."],
    "LABELS": ["BACKGROUND", "METHODS"],
    "final_decision": "maybe",
    "LONG_ANSWER": "Perhaps.",
}
MEDQA = {
    "question": "Which one?",
    "answer": "Nitrofurantoin",
    "options": {"B": "Nitrofurantoin", "A": "Ampicillin", "C": "Ceftriaxone", "D": "Doxycycline"},
    "meta_info": "step2&3",
    "answer_idx": "B",
}
YES_NO = {
    "id": "55031181e9bde69634000014",
    "body": "Is Hirschsprung disease mendelian?",
    "type": "yesno",
    "exact_answer": "no",
    "documents": ["http://www.ncbi.nlm.nih.gov/pubmed/15829955", "http://www.ncbi.nlm.nih.gov/pubmed/6650562"],
    "snippets": [{"text": "It is complex.", "document": "http://www.ncbi.nlm.nih.gov/pubmed/15829955"}],
}
HOUSING = {
    "idx": 7,
    "state": "Alabama",
    "question": "Is there a law?",
    "answer": "Yes",
    "question_group": 12,
    "statutes": [{"statute_idx": 431263, "citation": "ALA. CODE § 35-9A-441", "excerpt": "A landlord shall."}],
}
TRIVIA = {
    "Question": "Who was the man behind The Chipmunks?",
    "QuestionId": "tc_2",
    "Answer": {"Value": "David Seville", "Aliases": ["David Seville", "Ross Bagdasarian"], "NormalizedAliases": ["x"]},
}
TASK = {
    "id": "11-0",
    "passages": [{"id": "a", "title": "A", "text": "x"}, {"id": "b", "title": "B", "text": "y"}],
    "questions": [{"question": "Q?", "answer": "A", "context": [1]}, {"question": "R?", "answer": "B"}],
}


AUGMENTED_PAIRS = [{"question": "Q?", "answer": "A", "full_answer": "It is A."}]
SQUAD_QUESTIONS = [{"id": "1", "question": "Q?", "answers": [{"text": "A"}]}]
SQUAD = {"title": "T", "paragraphs": [{"context": "A is it.", "qas": SQUAD_QUESTIONS}]}
EXAMPLES: dict[str, tuple[str, Any]] = {
    "2wikimultihopqa": ("set.json", [TWO_WIKI]),
    "hotpotqa": ("set.json", [HOTPOT]),
    "complexwebquestions": ("set.json", [CWQ]),
    "musique": ("set.jsonl", MUSIQUE),
    "bamboogle": ("set.csv", "Question,Answer\nQ?,A\n"),
    "squad": ("set.json", {"data": [SQUAD]}),
    "popqa": ("set.tsv", 'id\tprop\tquestion\tpossible_answers\n1\toccupation\tQ?\t"[""A""]"\n'),
    "nq": ("set.jsonl", {"question": "q", "answer": ["A"]}),
    "triviaqa": ("set.json", {"Data": [TRIVIA]}),
    "pubmedqa": ("set.json", {"21645374": PUBMED}),
    "medqa": ("set.jsonl", MEDQA),
    "bioasq": ("set.json", {"questions": [YES_NO]}),
    "casehold": ("set.jsonl", {"context": "It held, (<HOLDING>)", "endings": list("abcde"), "label": 4}),
    "learned-hands-family": ("set.tsv", "index\tanswer\ttext\n0\tYes\tThe HOA refuses.\n"),
    "housingqa": ("set.json", [HOUSING]),
    "data-aug": ("set.json", [SAMPLED]),
    "data-aug-pairs": ("set.json", [{"augment": [{"pid": 0, "passage": "x", "m_qa": AUGMENTED_PAIRS}]}]),
    "jsonl": ("set.jsonl", {"question": "Q?", "answer": "A"}),
    "tasks": ("set.jsonl", TASK),
    "augmented": ("set.jsonl", {"id": "p", "title": "T", "text": "x", "rewrites": [], "pairs": AUGMENTED_PAIRS}),
    "beir": ("queries.jsonl", {"_id": "q", "text": "Where?", "metadata": {}}),
    "topics": ("topics.tsv", "12\tWhere is it?\n"),
}
"""Of every format a file with one good record; a new reader needs one here."""


def write(path: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def read(path: Path, format_: str, **settings: Any) -> list[Question]:
    return read_questions(
        QuestionSetConfig(name="set", path=str(path), format=format_, **{"sha256": "any", **settings})
    )


def test_every_reader_has_an_example_and_a_row_in_the_document() -> None:
    document = (Path(__file__).parents[3] / "docs" / "question-sets.md").read_text()
    table = document.split("| format | file | kind |")[1].split("\n\n")[0]
    assert set(READERS) == set(EXAMPLES) == set(re.findall(r"^\| `(.+?)` \|", table, re.M))


@pytest.mark.parametrize("format_", EXAMPLES)
def test_a_good_record_of_every_format_is_read(tmp_path: Path, format_: str) -> None:
    name, content = EXAMPLES[format_]
    path = write(tmp_path / name, content)
    searched = format_ in ("beir", "topics")
    config = QuestionSetConfig(name="set", path=str(path), format=format_)
    questions = read_queries(config) if searched else read(path, format_)
    assert questions and all(one.question and (one.answers or searched) for one in questions)


@pytest.mark.parametrize("name", ["q.jl", "q.jsonlines", "q.json", "q.txt", "q.ndjson"])
def test_one_question_is_a_file_of_questions(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps({"id": "1", "question": "Q", "answer": "a"}))
    config = QuestionSetConfig(name="one", path=str(tmp_path / name), format="jsonl")
    assert [question.id for question in read_questions(config)] == ["1"]


def test_hotpotqa(tmp_path: Path) -> None:
    (found,) = read(write(tmp_path / "hotpot_dev_distractor_v1.json", [HOTPOT]), "hotpotqa")
    assert found == Question(
        id="5a8b57f25542995d1e6f1371",
        question=HOTPOT["question"],  # type: ignore[arg-type]
        answers=("yes",),
        passage_ids=("Scott Derrickson", "Ed Wood"),
        passages=(
            Passage("Ed Wood", "Ed Wood", "Ed Wood is a film. It is from 1994."),
            Passage("Scott Derrickson", "Scott Derrickson", "He directs."),
        ),
        group="comparison",
    )


def test_2wikimultihopqa_with_the_aliases_of_its_evaluation(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.json", [TWO_WIKI, {**TWO_WIKI, "_id": "other", "answer_id": None}])
    aliases = write(
        tmp_path / "id_aliases.json",
        lines({"Q_id": "Q274277", "aliases": ["M. Braunek"], "demonyms": []}, {"Q_id": "Q1", "aliases": []}),
    )
    assert [q.answers for q in read(path, "2wikimultihopqa")] == [("Małgorzata Braunek",)] * 2
    found = read(path, "2wikimultihopqa", aliases=str(aliases))
    assert [q.answers for q in found] == [("Małgorzata Braunek", "M. Braunek"), ("Małgorzata Braunek",)]
    assert found[0].group == "compositional"


@pytest.mark.parametrize("format_", ["2wikimultihopqa", "complexwebquestions", "data-aug"])
def test_a_sample_with_test_ids(tmp_path: Path, format_: str) -> None:
    (found,) = read(write(tmp_path / "q.json", [SAMPLED]), format_)
    assert found == Question("0", "Who?", ("Mask of Fu Manchu", "The Mask of Fu Manchu"))


def test_complexwebquestions(tmp_path: Path) -> None:
    (found,) = read(write(tmp_path / "ComplexWebQuestions_dev.json", [CWQ]), "complexwebquestions")
    assert found == Question("WebQTest-1", "What year?", ("1966", "the year 1966"), group="conjunction")


def test_musique_leaves_out_what_cannot_be_answered(tmp_path: Path) -> None:
    twin = {**MUSIQUE, "answerable": False}
    (found,) = read(write(tmp_path / "musique_full_v1.0_dev.jsonl", lines(twin, MUSIQUE)), "musique")
    assert (found.answers, found.group) == (("1961", "in 1961"), "3hop1")
    assert found.passage_ids == ("3hop1__13548_13529_23/1",)
    assert found.passages[1] == Passage("3hop1__13548_13529_23/1", "B", "Text b.")


@pytest.mark.parametrize(
    ("name", "text"),
    [("b.csv", 'Question,Answer\n"Who, then?",A\n'), ("b.jsonl", '{"question": "Who, then?", "answer": "A"}')],
)
def test_bamboogle(tmp_path: Path, name: str, text: str) -> None:
    (found,) = read(write(tmp_path / name, text), "bamboogle")
    assert (found.question, found.answers, len(found.id)) == ("Who, then?", ("A",), 16)


@pytest.mark.parametrize(("format_", "field"), [("nq", "answer"), ("popqa", "possible_answers")])
def test_rows_of_the_hub_are_read_as_the_published_file(tmp_path: Path, format_: str, field: str) -> None:
    pq.write_table(pa.table({"question": ["q"], field: [["A", "B"]]}), tmp_path / "set.parquet")
    (found,) = read(str(tmp_path / "set.parquet"), format_)
    assert found.answers == ("A", "B")


def test_popqa(tmp_path: Path) -> None:
    header = "id\tsubj\tprop\tobj\to_aliases\tquestion\tpossible_answers"
    row = '4222362\tGeorge Rankin\toccupation\tpolitician\t"[""pol""]"\tWhat is it?\t"[""politician"", ""pol""]"'
    (found,) = read(write(tmp_path / "popQA.tsv", f"{header}\n{row}\n"), "popqa")
    assert found == Question("4222362", "What is it?", ("politician", "pol"), group="occupation")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nq-test.qa.csv", 'who sings\t[\'The "Band"\', "O\'Neil"]\n'),
        ("nq.tsv", 'who sings\t[\'The "Band"\', "O\'Neil"]\n'),
        ("NQ-open.dev.jsonl", lines({"question": "who sings", "answer": ['The "Band"', "O'Neil"]})),
    ],
)
def test_natural_questions(tmp_path: Path, name: str, text: str) -> None:
    (found,) = read(write(tmp_path / name, text), "nq")
    assert (found.question, found.answers) == ("who sings", ('The "Band"', "O'Neil"))


def test_the_answers_of_a_dpr_file_are_read_and_never_run(tmp_path: Path) -> None:
    path = write(tmp_path / "nq.csv", f"who\t__import__('os').mkdir('{tmp_path}/made')\n")
    with refused(EvaluationError, "wrong_field", where=f"{path} record 1", field="answers"):
        read(path, "nq")
    assert not (tmp_path / "made").exists()


def test_triviaqa(tmp_path: Path) -> None:
    path = write(tmp_path / "wikipedia-dev.json", {"Data": [TRIVIA], "Domain": "Web"})
    (found,) = read(path, "triviaqa")
    assert found == Question("tc_2", TRIVIA["Question"], ("David Seville", "Ross Bagdasarian"))  # type: ignore[arg-type]
    held_back = {"Data": [{key: value for key, value in TRIVIA.items() if key != "Answer"}]}
    with refused(EvaluationError, "missing_field", where=f"{tmp_path}/test.json record 1", field="Answer"):
        read(write(tmp_path / "test.json", held_back), "triviaqa")


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


def test_data_aug_of_both_releases(tmp_path: Path) -> None:
    prag = {**SAMPLED, "qid": "8813", "type": "comparison", "passages": ["One.", "Two."], "augment": [{"pid": 0}]}
    regrad = {"test_id": 4, "question": "It?", "answer": "C", "choices": ["a", "b", "c"], "passages": ["Two."]}
    first, second = read(write(tmp_path / "total.json", [prag, regrad]), "data-aug")
    assert (first.id, first.group, second.id) == ("8813", "comparison", "4")
    assert (second.kind, second.answers) == ("choice", ("C",))
    assert first.passages[1] == second.passages[0] != first.passages[0]


def test_ones_own_jsonl(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.jsonl",
        "\ufeff"
        + lines(
            {"question": "Who?", "answer": 7},
            {"id": "b", "question": "Is it?", "answers": ["Yes"], "kind": "yes-no", "passage_ids": ["p", "q"]},
            {"id": "c", "question": "Which?", "answer": "b", "choices": ["x", "y"], "group": "g"},
            {"id": "d", "question": "Which?", "answer": "x", "choices": ["x", "y"]},
            {"id": "e", "question": "Which?", "answer": 1, "choices": ["x", "y"]},
        ),
    )
    found = read(path, "jsonl")
    assert [q.answers for q in found] == [("7",), ("yes",), ("B",), ("A",), ("B",)]
    assert [q.kind for q in found] == ["open", "yes-no", "choice", "choice", "choice"]
    assert (found[1].passage_ids, found[1].choices, found[2].group) == (("p", "q"), ("yes", "no"), "g")


def test_the_labs_own_questions_and_tasks(tmp_path: Path) -> None:
    config = LabConfig(output=str(tmp_path), questions=7, task_records=3)
    write_lab(config)
    questions = read(tmp_path / "questions.jsonl", "jsonl")
    assert len(questions) == len({q.id for q in questions}) == 7
    assert all(len(q.passage_ids) == len(q.answers) == 1 for q in questions)
    asked = read(tmp_path / "tasks.jsonl", "tasks")
    records = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    assert [q.question for q in asked] == [q["question"] for record in records for q in record["questions"]]


def test_tasks_rest_on_their_passages(tmp_path: Path) -> None:
    first, second = read(write(tmp_path / "tasks.jsonl", lines(TASK)), "tasks")
    assert (first.id, first.passage_ids, second.passage_ids) == ("11-0/0", ("b",), ("a", "b"))
    assert first.passages == (Passage("b", "B", "y"),)


@pytest.mark.parametrize(
    ("format_", "record", "code", "field"),
    [
        ("hotpotqa", {**HOTPOT, "question": " "}, "wrong_field", "question"),
        ("hotpotqa", {**HOTPOT, "context": [["A"]]}, "wrong_field", "context"),
        (
            "hotpotqa",
            {k: v for k, v in HOTPOT.items() if k != "supporting_facts"},
            "missing_field",
            "supporting_facts",
        ),
        ("hotpotqa", {**HOTPOT, "answer": True}, "wrong_field", "answer"),
        ("complexwebquestions", {**CWQ, "answers": []}, "wrong_field", "answers"),
        ("complexwebquestions", {**CWQ, "answers": ["x"]}, "wrong_field", "answers[0]"),
        ("musique", {**MUSIQUE, "paragraphs": [{"idx": 0}]}, "missing_field", "paragraph_text"),
        ("medqa", {**MEDQA, "answer_idx": "E"}, "wrong_field", "answer_idx"),
        (
            "medqa",
            {**MEDQA, "options": {"A": "x", "C": "y"}},
            "wrong_field",
            "options",
        ),
        (
            "bioasq",
            {**YES_NO, "exact_answer": "perhaps"},
            "wrong_field",
            "exact_answer",
        ),
        ("housingqa", {**HOUSING, "answer": 3}, "wrong_field", "answer"),
        (
            "casehold",
            {"context": "x", "endings": ["a", "b"], "label": 2},
            "wrong_field",
            "label",
        ),
        (
            "data-aug",
            {"test_id": 1, "question": "a\x00b", "answer": "x"},
            "wrong_field",
            "question",
        ),
        ("jsonl", {"question": "a\ud800b", "answer": "x"}, "wrong_field", "question"),
        ("jsonl", {"question": "x", "answers": [{}]}, "wrong_field", "answers"),
        (
            "jsonl",
            {"question": "x", "answer": "z", "choices": ["a", "b"]},
            "wrong_field",
            "answer",
        ),
        (
            "jsonl",
            {"question": "x", "answer": "a", "kind": "chioce"},
            "wrong_field",
            "kind",
        ),
        ("jsonl", {"question": "x", "answer": "a", "passages": [{"id": "p"}]}, "bad_passage", "text"),
        ("tasks", {**TASK, "questions": [{"question": "x", "answer": "y", "context": [2]}]}, "bad_task", "context"),
    ],
)
def test_a_wrong_record_is_named_with_its_field(
    tmp_path: Path, format_: str, record: dict[str, Any], code: str, field: str
) -> None:
    path = write(tmp_path / "set.json", [record])
    with refused(EvaluationError, code, field=field) as error:
        read(path, format_)
    assert str(error.value).startswith(f"{path} record 1")


def test_an_augmentations_questions_come_with_their_passage(tmp_path: Path) -> None:
    pairs = [{"question": "A?", "answer": "1", "full_answer": "It is 1."}, {"question": "B?", "answer": 2}]
    own = {"id": "p", "title": "T", "text": "x", "rewrites": ["y"], "pairs": pairs}
    made = write(tmp_path / "augmented.jsonl", lines(own, {**own, "id": "bare", "pairs": []}))
    assert [(q.id, q.question, q.answers, q.passage_ids) for q in read(made, "augmented")] == [
        ("p/0", "A?", ("1",), ("p",)),
        ("p/1", "B?", ("2",), ("p",)),
    ]
    item = {"pid": 0, "passage": "x", "m_rewrite": "y", "m_qa": pairs}
    twice = write(tmp_path / "total.json", [{"augment": [item]}, {"augment": [item, {**item, "passage": "z"}]}])
    found = read(twice, "data-aug-pairs")
    assert [(q.question, q.passages[0].text) for q in found] == [("A?", "x"), ("B?", "x"), ("A?", "z"), ("B?", "z")]


@pytest.mark.parametrize(
    ("format_", "record", "code", "field"),
    [
        ("augmented", {"id": "p", "text": "x", "pairs": {}}, "wrong_field", "pairs"),
        (
            "augmented",
            {"id": "p", "text": "x", "pairs": [{"question": "A?"}]},
            "missing_field",
            "answer",
        ),
        ("augmented", {"id": "p", "pairs": []}, "bad_passage", "text"),
        ("data-aug-pairs", {"augment": [{"passage": "x"}]}, "missing_field", "<writer>_qa"),
        ("data-aug-pairs", {"question": "A?"}, "missing_field", "augment"),
    ],
)
def test_a_wrong_augmentation_is_named(
    tmp_path: Path, format_: str, record: dict[str, Any], code: str, field: str
) -> None:
    with refused(EvaluationError, code, field=field):
        read(write(tmp_path / "set.json", [record]), format_)


@pytest.mark.parametrize("format_", sorted(READERS))
@pytest.mark.parametrize(
    "content", ["[{}]", '{"questions": [{}], "Data": [{}]}', "[1]", "3", "{", '"x"', '[{"a": [', "a,b\n"]
)
def test_no_reader_fails_in_another_way_than_with_its_own_error(tmp_path: Path, format_: str, content: str) -> None:
    for name in ("set.json", "set.jsonl", "set.csv", "set.tsv"):
        with pytest.raises(EvaluationError, match=name):
            read(write(tmp_path / name, content), format_)


@pytest.mark.parametrize("format_", sorted(READERS))
@pytest.mark.parametrize("name", ["e.json", "e.jsonl", "e.csv"])
def test_an_empty_file_holds_no_questions(tmp_path: Path, format_: str, name: str) -> None:
    with refused(EvaluationError, "no_questions", uri=str(tmp_path / name)):
        read(write(tmp_path / name, "\n"), format_)


@pytest.mark.parametrize(
    ("format_", "near"),
    [("hotpot", "hotpotqa"), ("2wiki", "2wikimultihopqa"), ("PubMedQA", "pubmedqa"), ("trivia-qa", "triviaqa")],
)
def test_an_unknown_format_names_the_nearest(tmp_path: Path, format_: str, near: str) -> None:
    with refused(EvaluationError, "unknown_name", name=format_, near=near):
        read(tmp_path / "none", format_)


def test_a_wrong_checksum_names_both(tmp_path: Path) -> None:
    path = write(tmp_path / "set.json", [SAMPLED])
    right, wrong = hashlib.sha256(path.read_bytes()).hexdigest(), "0" * 64
    assert len(read(path, "data-aug", sha256=right)) == 1
    with refused(EvaluationError, "other_file", found=right, expected=wrong):
        read(path, "data-aug", sha256=wrong)
    assert len(read(path, "data-aug", sha256="any")) == 1
    with refused(ConfigError, "invalid"):
        parse_settings(QuestionSetConfig, {"name": "x", "path": "x", "sha256": "abc"}, "test")


@pytest.mark.parametrize(("format_", "name"), [(f, name) for f, names in PUBLISHED.items() for name in names])
def test_a_file_with_a_published_name_must_be_the_published_file(tmp_path: Path, format_: str, name: str) -> None:
    path = write(tmp_path / name, "[]")
    with refused(EvaluationError, "not_the_published_file", expected=PUBLISHED[format_][name]):
        read(path, format_, sha256=None)
    settings = QuestionSetConfig(name="x", path=f"s3://bucket/{name}", format=format_)
    assert re.fullmatch("[0-9a-f]{64}", published_checksum(settings) or "")
    assert published_checksum(settings.model_copy(update={"format": "jsonl"})) is None


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zip", "GZ"])
def test_a_published_file_is_checked_unpacked_and_a_stated_checksum_as_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    name, right = "hotpot_dev_distractor_v1.json", json.dumps([HOTPOT]).encode()
    monkeypatch.setitem(PUBLISHED["hotpotqa"], name, hashlib.sha256(right).hexdigest())
    path = tmp_path / f"{name}.{ending}"

    def store(data: bytes) -> str:
        path.write_bytes(packed(name, data, ending.lower()))
        return hashlib.sha256(path.read_bytes()).hexdigest()

    stored = store(right)
    assert len(read(path, "hotpotqa", sha256=None)) == len(read(path, "hotpotqa", sha256=stored)) == 1
    with refused(EvaluationError, "other_file", found=stored):
        read(path, "hotpotqa", sha256=hashlib.sha256(right).hexdigest())
    other = store(right + b"\n")
    found = hashlib.sha256(right + b"\n").hexdigest()
    with refused(EvaluationError, "not_the_published_file", found=found):
        read(path, "hotpotqa", sha256=None)
    for stated in ("any", other):
        assert len(read(path, "hotpotqa", sha256=stated)) == 1


def packed(name: str, data: bytes, ending: str) -> bytes:
    """Compressed, as a file with this ending is."""
    if ending != "zip":
        pack: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
        return pack[ending](data)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


def test_two_records_with_one_id_are_an_error(tmp_path: Path) -> None:
    with refused(EvaluationError, "duplicate_id", id="0", places=[1, 3]):
        read(write(tmp_path / "set.json", [SAMPLED, {**SAMPLED, "test_id": 1}, SAMPLED]), "data-aug")


def test_questions_without_ids_get_some_that_do_not_depend_on_their_place(tmp_path: Path) -> None:
    a, b = {"question": "A?", "answer": "1"}, {"question": "B?", "answer": "2"}
    forwards = read(write(tmp_path / "f.jsonl", lines(a, b, a)), "jsonl")
    backwards = read(write(tmp_path / "b.jsonl", lines(b, a, a)), "jsonl")
    assert {q.id: q.question for q in forwards} == {q.id: q.question for q in backwards}
    assert len({q.id for q in forwards}) == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with refused(EvaluationError, "not_found", uri=str(tmp_path / "none.json")):
        read(tmp_path / "none.json", "jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with refused(EvaluationError, "not_utf8"):
        read(tmp_path / "latin.jsonl", "jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"question": "x", "answer": "y"}' * 90)[:-9])
    (tmp_path / "no.json.zip").write_bytes(b"not an archive")
    for name in ("cut.jsonl.gz", "no.json.zip", ""):
        with refused(EvaluationError, "unreadable", uri=str(tmp_path / name)):
            read(tmp_path / name, "jsonl")


def test_compressed_lines(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl.gz").write_bytes(gzip.compress(lines({"question": "x", "answer": "y"}).encode()))
    assert [q.question for q in read(tmp_path / "own.jsonl.gz", "jsonl")] == ["x"]


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regrad.data.question_files.MAX_BYTES", 1000)
    (tmp_path / "own.jsonl.gz").write_bytes(gzip.compress(b" " * 1001))
    with refused(EvaluationError, "unpacks_to_too_much"):
        read(tmp_path / "own.jsonl.gz", "jsonl")
    write(tmp_path / "own.jsonl", " " * 1001)
    with refused(EvaluationError, "too_large"):
        read(tmp_path / "own.jsonl", "jsonl")


def test_a_kind_that_the_answers_do_not_allow(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", lines({"question": "x", "answer": "No"}, {"question": "y", "answer": "Rome"}))
    (found,) = read(path, "jsonl", kind="yes-no", limit=1)
    assert (found.kind, found.choices, found.answers) == ("yes-no", ("yes", "no"), ("no",))
    with refused(EvaluationError, "wrong_answer", found=["Rome"]):
        read(path, "jsonl", kind="yes-no")
    with refused(EvaluationError, "other_kind", found="open", wanted="choice"):
        read(path, "jsonl", kind="choice")


def numbered(path: Path, numbers: list[int]) -> Path:
    return write(path, lines(*({"id": str(i), "question": f"Q{i}", "answer": "a"} for i in numbers)))


def test_first_takes_the_beginning_or_all(tmp_path: Path) -> None:
    path = numbered(tmp_path / "own.jsonl", [3, 1, 2])
    assert [q.id for q in read(path, "jsonl", limit=2)] == ["3", "1"]
    assert [q.id for q in read(path, "jsonl", limit=9)] == ["3", "1", "2"]


@given(order=st.permutations(list(range(30))), small=st.integers(1, 10), more=st.integers(0, 10), seed=st.integers())
def test_a_sample_depends_on_ids_and_seed_alone(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], small: int, more: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("sample")
    one = read(numbered(folder / "one.jsonl", list(range(30))), "jsonl", sample=small, seed=seed)
    other = read(numbered(folder / "other.jsonl", order), "jsonl", sample=small + more, seed=seed)
    assert one == other[:small]
    assert len(other) == small + more


def test_samples_of_different_seeds_differ(tmp_path: Path) -> None:
    path = numbered(tmp_path / "own.jsonl", list(range(200)))
    drawn = [{q.id for q in read(path, "jsonl", sample=50, seed=seed)} for seed in (0, 1)]
    assert len(drawn[0]) == len(drawn[1]) == 50
    assert len(drawn[0] & drawn[1]) < 30  # 12.5 are expected
    assert [q.id for q in read(path, "jsonl", limit=3, sample=3)] != []


@pytest.mark.parametrize(
    ("key", "near"),
    [("choises", "choices"), ("choice", "choices"), ("Answers", "answers"), ("anwser", "answer"),
     ("passage", "passages"), ("passage-ids", "passage_ids"), ("ID", "id"), ("kinds", "kind"), ("grup", "group")],
)  # fmt: skip
def test_a_key_of_ones_own_file_that_is_nearly_a_known_one(tmp_path: Path, key: str, near: str) -> None:
    path = write(
        tmp_path / "own.jsonl", lines({"question": "x", "answer": "y"}, {"question": "z", "answer": "y", key: 1})
    )
    with refused(EvaluationError, "unknown_field", where=f"{path} line 2", field=key, near=near):
        read(path, "jsonl")


def test_other_keys_of_ones_own_file_are_passed_over(tmp_path: Path) -> None:
    extra = ("question_id", "source", "level", "type", "_id", "uid", "answerable", "answer_id", "comment", "x" * 99)
    path = write(tmp_path / "own.jsonl", lines({"question": "x", "answer": "y", **dict.fromkeys(extra, "?")}))
    assert [q.answers for q in read(path, "jsonl")] == [("y",)]


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (["x", "y"], 1, "B"),
        (["x", "y"], 0, "A"),
        (["x", "y"], "b", "B"),
        (["1", "2", "0"], 1, "A"),
        (["1", "2", "0"], "0", "C"),
        (["B", "A"], "A", "B"),
    ],
)
def test_a_number_is_a_place_from_0_unless_an_option_reads_so(
    tmp_path: Path, choices: list[str], answer: object, letter: str
) -> None:
    path = write(tmp_path / "own.jsonl", lines({"question": "x", "choices": choices, "answer": answer}))
    assert [q.answers for q in read(path, "jsonl")] == [(letter,)]


@pytest.mark.parametrize(
    ("answer", "choices", "word"),
    [
        (True, None, "yes"),
        (False, None, "no"),
        ([True], None, "yes"),
        ("True", None, "yes"),
        ("false", None, "no"),
        (True, ["true", "false"], "true"),
        ("false", ["True", "False"], "false"),
    ],
)
def test_true_and_false_answer_yes_or_no(tmp_path: Path, answer: object, choices: list[str] | None, word: str) -> None:
    record = {"question": "x", "kind": "yes-no", "answer": answer} | ({"choices": choices} if choices else {})
    assert [q.answers for q in read(write(tmp_path / "own.jsonl", lines(record)), "jsonl")] == [(word,)]


def test_true_is_no_answer_where_the_words_are_others(tmp_path: Path) -> None:
    record = {"question": "x", "kind": "yes-no", "answer": True, "choices": ["entailed", "not entailed"]}
    with refused(EvaluationError, "wrong_field", field="answer"):
        read(write(tmp_path / "own.jsonl", lines(record)), "jsonl")
