"""Question sets: every published format in a file of its own making, and what must become of it.

Those of conversations, medicine and law are in `test_conversations.py` and `test_medicine_and_law.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrad.data.passages import Passage
from regrad.data.question_sets import (
    READERS,
    QuestionSetConfig,
    read_queries,
    read_questions,
)
from regrad.data.questions import Question
from regrad.errors import EvaluationError
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
MARCO = {
    "query_id": 19,
    "query": "how tall is the tower",
    "query_type": "NUMERIC",
    "answers": ["30 metres"],
    "passages": [
        {"is_selected": 0, "passage_text": "It is a tower.", "url": "http://a"},
        {"is_selected": 1, "passage_text": "It is 30 metres tall.", "url": "http://b"},
    ],
    "wellFormedAnswers": [],
}
OR_QUAC = {
    "qid": "C_ab_1_q#1",
    "question": "When was that?",
    "rewrite": "When was the tower built?",
    "answer": {"text": "in 1912", "answer_start": 3},
    "history": [{"question": "Who built it?", "answer": {"text": "the town", "answer_start": 0}}],
    "evidences": ["It was built in 1912.", "It is a tower."],
    "retrieval_labels": [1, 0],
}
DOQA_QAS = [
    {
        "id": "C_cd_q#0",
        "question": "Can I freeze it?",
        "answers": [{"text": "Yes, for a month.", "answer_start": 0, "input_text": "Yes"}],
        "orig_answer": {"text": "Yes, for a month.", "answer_start": 0},
        "followup": "y",
        "yesno": "y",
    },
    {
        "id": "C_cd_q#1",
        "question": "And longer?",
        "answers": [{"text": "CANNOTANSWER", "answer_start": 30}],
        "orig_answer": {"text": "CANNOTANSWER", "answer_start": 30},
        "followup": "n",
        "yesno": "x",
    },
    {
        "id": "C_cd_q#2",
        "question": "How do I thaw it?",
        "answers": [{"text": "slowly"}, {"text": "slowly"}],
        "orig_answer": {"text": "slowly"},
        "followup": "n",
        "yesno": "x",
    },
]
DOQA = {"title": "Bread", "background": "I bake.", "paragraphs": [{"context": "Yes, ... slowly", "qas": DOQA_QAS}]}
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
    "ms-marco": ("set.jsonl", MARCO),
    "or-quac": ("dev.txt", OR_QUAC),
    "doqa": ("set.json", {"data": [DOQA]}),
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


def test_ms_marco_in_each_of_its_forms(tmp_path: Path) -> None:
    without = {**MARCO, "query_id": 20, "answers": ["No Answer Present."]}
    columns = {name: {"0": MARCO[name], "1": without[name]} for name in MARCO}
    rows = [{**MARCO, "passages": {"is_selected": [0, 1], "passage_text": ["It is a tower.", "It is 30 metres tall."]}}]
    expected = Question(
        "19",
        "how tall is the tower",
        ("30 metres",),
        passage_ids=("19/1",),
        passages=(Passage("19/0", "", "It is a tower."), Passage("19/1", "", "It is 30 metres tall.")),
        group="NUMERIC",
    )
    assert read(write(tmp_path / "dev_v2.1.json", columns), "ms-marco") == [expected]
    assert read(write(tmp_path / "dev.jsonl", lines(without, MARCO)), "ms-marco") == [expected]
    assert read(write(tmp_path / "rows.json", rows), "ms-marco") == [expected]
    for selected in ([1], [0, 1, 0], ["0", "1"]):
        uneven = {**MARCO, "passages": {"is_selected": selected, "passage_text": ["It is a tower.", "It is tall."]}}
        with refused(EvaluationError, "wrong_field", field="is_selected"):
            read(write(tmp_path / "uneven.jsonl", lines(uneven)), "ms-marco")
    unmarked = {**MARCO, "passages": [{"passage_text": "It is a tower."}]}
    assert read(write(tmp_path / "unmarked.jsonl", lines(unmarked)), "ms-marco")[0].passage_ids == ()
    bare = {key: value for key, value in MARCO.items() if key != "answers"}
    with refused(EvaluationError, "missing_field", field="answers"):
        read(write(tmp_path / "eval.jsonl", bare), "ms-marco")


def test_data_aug_of_both_releases(tmp_path: Path) -> None:
    prag = {**SAMPLED, "qid": "8813", "type": "comparison", "passages": ["One.", "Two."], "augment": [{"pid": 0}]}
    regrad = {"test_id": 4, "question": "It?", "answer": "C", "choices": ["a", "b", "c"], "passages": ["Two."]}
    first, second = read(write(tmp_path / "total.json", [prag, regrad]), "data-aug")
    assert (first.id, first.group, second.id) == ("8813", "comparison", "4")
    assert (second.kind, second.answers) == ("choice", ("C",))
    assert first.passages[1] == second.passages[0] != first.passages[0]
