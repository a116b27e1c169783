"""Questions of medicine: PubMedQA, MedQA, BioASQ."""

from __future__ import annotations

from collections.abc import Iterator

from regrad.data.passages import Passage
from regrad.data.question_files import QuestionFile
from regrad.data.questions import MOST_CHOICES, YES_NO, Fields, Question, label
from regrad.errors import EvaluationError

_MAYBE = (*YES_NO, "maybe")


def pubmedqa(file: QuestionFile) -> Iterator[Question]:
    """PubMedQA (github.com/pubmedqa/pubmedqa), the layout of `ori_pqal.json`: an object by PubMed id.

    An entry has `QUESTION`, `CONTEXTS` (the abstract without its conclusion, in parts) and `final_decision`: yes, no or
    maybe. The abstract is the question's passage; its id is the PubMed id.
    """
    for record in file.records():
        if not record.key:
            text = f"{file.uri}: an object with PubMed ids as its keys is expected, found a list"
            raise EvaluationError(text, code="no_object", uri=file.uri)
        abstract = Passage(record.key, "", " ".join(record.strings("CONTEXTS")))
        yield Question(
            record.key,
            record.text("QUESTION"),
            (record.word("final_decision", _MAYBE),),
            kind="yes-no",
            choices=_MAYBE,
            passage_ids=(record.key,),
            passages=(abstract,),
        )


def medqa(file: QuestionFile) -> Iterator[Question]:
    """MedQA (github.com/jind11/MedQA): JSON lines of `question`, `options` by letter, `answer_idx`, `meta_info`.

    The group is `meta_info`, the step of the examination. The paper asks this set openly: `kind: open`.
    """
    for record in file.records():
        options = record.record("options")
        letters = sorted(options.fields)
        if not letters or letters != [label(i) for i in range(min(len(letters), MOST_CHOICES))]:
            raise record.error("options", "an object of texts by the letters A, B, C and so on")
        answer = record.text("answer_idx").upper()
        if answer not in letters:
            raise record.error("answer_idx", f"one of {', '.join(letters)}")
        choices = tuple(options.text(letter) for letter in letters)
        group = record.maybe("meta_info")
        yield Question(record.maybe("id"), record.text("question"), (answer,), "choice", choices, group=group)


def bioasq(file: QuestionFile) -> Iterator[Question]:
    """BioASQ task b (participants-area.bioasq.org), its yes/no questions: an object whose `questions` are records.

    A record has `id`, `body`, `type`, `exact_answer`, `documents` and `snippets`. The gold passages are the documents'
    PubMed ids; the snippets, with their number, are the passages that come with the question. Other types are left out.
    """
    for record in file.records("questions"):
        if record.text("type") != "yesno":
            file.left_out["is no yes/no question (BioASQ)"] += 1
            continue
        yield Question(
            record.text("id"),
            record.text("body"),
            (record.word("exact_answer", YES_NO),),
            kind="yes-no",
            choices=YES_NO,
            passage_ids=tuple(dict.fromkeys(map(_pubmed_id, record.maybe_texts("documents")))),
            passages=tuple(_snippets(record)),
        )


def _snippets(record: Fields) -> Iterator[Passage]:
    snippets = record.records("snippets") if record.has("snippets") else []
    for number, snippet in enumerate(snippets):
        yield Passage(f"{_pubmed_id(snippet.maybe('document'))}/{number}", "", snippet.text("text"))


def _pubmed_id(document: str) -> str:
    """The last part of http://www.ncbi.nlm.nih.gov/pubmed/34687634."""
    return document.rstrip("/").rpartition("/")[2]
