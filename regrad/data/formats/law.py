"""Questions of law: CaseHOLD, Learned Hands Family, HousingQA."""

from __future__ import annotations

from collections.abc import Iterator

from regrad.data.passages import Passage
from regrad.data.question_files import QuestionFile
from regrad.data.questions import YES_NO, Fields, Question, label

_HOLDINGS = 5
_FAMILY = (
    "Does the post discuss issues that arise within a family, like divorce, adoption, name change, guardianship, "
    "domestic violence, child custody, and other issues?"
)


def casehold(file: QuestionFile) -> Iterator[Question]:
    """CaseHOLD (github.com/reglab/casehold): csv or JSON lines, as on the Hugging Face hub or in LexGLUE.

    The hub's columns are `example_id`, `citing_prompt`, `holding_0` to `holding_4` and `label`; LexGLUE's are
    `context`, `endings` and `label`. The label is the number of the right holding.
    """
    for record in file.records():
        if record.has("endings"):
            asked, choices = record.text("context"), record.strings("endings")
        else:
            asked = record.text("citing_prompt")
            choices = tuple(record.text(f"holding_{number}") for number in range(_HOLDINGS))
        answer = label(record.number("label", len(choices)))
        yield Question(record.maybe("example_id"), asked, (answer,), "choice", choices)


def learned_hands_family(file: QuestionFile) -> Iterator[Question]:
    """Learned Hands Family of LegalBench (github.com/HazyResearch/legalbench): tsv with `index`, `answer`, `text`.

    The question is the one of the task's prompt, followed by the post. Older files have `label` for `answer`.
    """
    for record in file.records():
        answer = record.word("answer" if record.has("answer") else "label", YES_NO)
        asked = f"{_FAMILY}\nPost: {record.text('text')}"
        yield Question(record.maybe("index"), asked, (answer,), "yes-no", YES_NO)


def housingqa(file: QuestionFile) -> Iterator[Question]:
    """HousingQA (huggingface.co/datasets/reglab/housing_qa), `questions.json`: a list of yes/no questions on a state.

    Fields `idx`, `state`, `question`, `answer`, `question_group`, and `statutes` of `statute_idx`, `citation`,
    `excerpt`; the answers hold as of 2021. Gold are the statutes by `statute_idx`, which is their id in the corpus.
    """
    for record in file.records():
        statutes = record.records("statutes") if record.has("statutes") else []
        state = record.maybe("state")
        yield Question(
            record.maybe("idx"),
            f"In {state}, as of 2021: {record.text('question')}" if state else record.text("question"),
            (record.word("answer", YES_NO),),
            kind="yes-no",
            choices=YES_NO,
            passage_ids=tuple(dict.fromkeys(statute.text("statute_idx") for statute in statutes)),
            passages=tuple(_excerpt(statute) for statute in statutes if statute.maybe("excerpt")),
            group=record.maybe("question_group"),
        )


def _excerpt(statute: Fields) -> Passage:
    return Passage(statute.text("statute_idx"), statute.maybe("citation"), statute.text("excerpt"))
