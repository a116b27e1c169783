"""The files of the ReGrad and PRAG releases: `data_aug`, and the samples that they are made of."""

from __future__ import annotations

from collections.abc import Iterator

from regrad.data.closed_questions import closed
from regrad.data.formats.jsonl import pair_question
from regrad.data.passages import Passage, passage_id
from regrad.data.question_files import QuestionFile
from regrad.data.questions import Fields, Question, QuestionKind


def data_aug(file: QuestionFile) -> Iterator[Question]:
    """`data_aug/SET/SPLIT.json` of github.com/oneal2000/ReGrad, `data_aug/SET/MODEL/PART.json` of oneal2000/PRAG.

    A JSON list of `test_id`, `question`, `answer` (one or several), `passages` (strings, best first), and where they
    apply `qid`, `type`, `choices` and PRAG's `augment`, which is for its adapters and read by `data_aug_pairs` instead.
    Passages have no ids there: theirs is a hash of the text, the same wherever the passage is retrieved.
    """
    return (sampled(record, file.kind) for record in file.records())


def data_aug_pairs(file: QuestionFile) -> Iterator[Question]:
    """What PRAG's adapters are trained on: the questions of every passage in `augment`, once a passage.

    They are in the field that ends in `_qa`, after the model that wrote them.
    """
    seen: set[str] = set()
    for record in file.records():
        for item in record.records("augment"):
            passage = _passage(item.text("passage"))
            pairs = item.records(next((name for name in item.fields if name.endswith("_qa")), "<writer>_qa"))
            if passage.id not in seen:
                seen.add(passage.id)
                yield from (pair_question(f"{passage.id}/{i}", pair, passage) for i, pair in enumerate(pairs))


def sampled(record: Fields, asked_as: QuestionKind | None = None) -> Question:
    """A record with `test_id`, `question` and `answer`."""
    passages = tuple(_passage(text) for text in record.maybe_texts("passages"))
    name = record.text("qid") if record.has("qid") else record.text("test_id")
    kind, choices, answers = closed(record, "answer", asked_as)
    return Question(name, record.text("question"), answers, kind, choices, (), passages, record.maybe("type"))


def _passage(text: str) -> Passage:
    return Passage(passage_id(text), "", text)
