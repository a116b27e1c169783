"""The files of the ReGrad and PRAG releases: `data_aug`, and the samples that they are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from regrad.corpus import Passage
from regrad.evaluation.questions.files import QuestionFile
from regrad.evaluation.questions.own import closed
from regrad.evaluation.questions.question import Question
from regrad.evaluation.questions.record import Record


def data_aug(file: QuestionFile) -> Iterator[Question]:
    """`data_aug/SET/SPLIT.json` of github.com/oneal2000/ReGrad, `data_aug/SET/MODEL/PART.json` of oneal2000/PRAG.

    A JSON list of `test_id`, `question`, `answer` (one or several), `passages` (strings, best first), and where they
    apply `qid`, `type`, `choices` and PRAG's `augment`, which is for its adapters and not read here. Passages have no
    ids there: theirs is a hash of the text, the same wherever the passage is retrieved.
    """
    return map(sampled, file.records())


def sampled(record: Record) -> Question:
    """A record with `test_id`, `question` and `answer`."""
    passages = tuple(_passage(text) for text in record.maybe_texts("passages"))
    name = record.text("qid") if record.has("qid") else record.text("test_id")
    kind, choices, answers = closed(record, "answer")
    return Question(name, record.text("question"), answers, kind, choices, (), passages, record.maybe("type"))


def _passage(text: str) -> Passage:
    return Passage(hashlib.sha256(text.encode()).hexdigest()[:16], "", text)
