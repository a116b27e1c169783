"""A question set from its settings: read, checked, and cut to the questions asked for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from regrad.data.config import QuestionSetConfig
from regrad.data.formats import jsonl, law, medicine, multi_hop, regrad_release, single_hop, squad
from regrad.data.question_files import QuestionFile, open_file, published_checksum
from regrad.data.questions import YES_NO, Question
from regrad.errors import EvaluationError
from regrad.registry import Registry

Reader = Callable[[QuestionFile], Iterator[Question]]

READERS: Registry[Reader] = Registry(
    "question format",
    EvaluationError,
    {
        "2wikimultihopqa": multi_hop.two_wiki,
        "hotpotqa": multi_hop.hotpotqa,
        "complexwebquestions": multi_hop.complex_web_questions,
        "musique": multi_hop.musique,
        "bamboogle": multi_hop.bamboogle,
        "squad": squad.squad,
        "popqa": single_hop.popqa,
        "nq": single_hop.natural_questions,
        "triviaqa": single_hop.triviaqa,
        "pubmedqa": medicine.pubmedqa,
        "medqa": medicine.medqa,
        "bioasq": medicine.bioasq,
        "casehold": law.casehold,
        "learned-hands-family": law.learned_hands_family,
        "housingqa": law.housingqa,
        "data-aug": regrad_release.data_aug,
        "data-aug-pairs": regrad_release.data_aug_pairs,
        "jsonl": jsonl.jsonl,
        "tasks": jsonl.tasks,
        "augmented": jsonl.augmented,
    },
)
"""Every format by name. A new one is one function and one entry here."""


def read_questions(config: QuestionSetConfig) -> list[Question]:
    """The questions of a set; raises `EvaluationError` for an unknown format and for whatever is wrong with it."""
    return read_set(config)[0]


def read_set(config: QuestionSetConfig) -> tuple[list[Question], Counter[str]]:
    """The questions of a set, and how many of the file its reader leaves out, by the reason; raises as above.

    `first` takes from the file's beginning, `sample` draws from these by a hash of seed and id, in the order of that
    hash: a larger sample begins with a smaller one, and the order of the file does not matter.
    """
    reader = READERS[config.format]
    stated = None if config.sha256 == "any" else config.sha256
    file = replace(open_file(config.path, stated, config.aliases, published_checksum(config)), kind=config.kind)
    questions = _named(reader(file), config.path)
    if not questions:
        raise EvaluationError(f"{config.path} holds no questions that the format '{config.format}' takes")
    words = _words(questions)  # of all of them: a part of the set is asked with the same prompt
    questions = questions[: config.first]
    if config.sample is not None:
        questions = _sample(questions, config.sample, config.seed)
    asked = [q.as_kind(config.kind or q.kind, f"{config.path} question '{q.id:.60}'", words) for q in questions]
    return asked, file.left_out


def _words(questions: Iterable[Question]) -> tuple[str, ...]:
    """What open questions are answered with if they are asked as yes-no: PubMedQA's third word, if any is."""
    answers = {answer.lower() for question in questions for answer in question.answers}
    return (*YES_NO, "maybe") if "maybe" in answers else YES_NO


def read_demonstrations(config: QuestionSetConfig, path: str, count: int) -> list[Question]:
    """The first `count` solved questions of a file, or all if it has fewer, in the format of the set they are shown in.

    Raises `EvaluationError` as `read_questions`.
    """
    taken = config.model_dump(include={"name", "format", "kind", "aliases"})
    return read_questions(QuestionSetConfig(path=path, first=count, **taken))


def _named(questions: Iterable[Question], path: str) -> list[Question]:
    """With ids where the file has none: a hash of what is asked, numbered where it is asked again."""
    named: list[Question] = []
    again: Counter[str] = Counter()
    first: dict[str, int] = {}
    for place, question in enumerate(questions, start=1):
        if not question.id:
            question = replace(question, id=_hash("\x00".join((question.question, *question.choices)))[:16])
            again[question.id] += 1
            if (times := again[question.id]) > 1:
                question = replace(question, id=f"{question.id}-{times}")
        if first.setdefault(question.id, place) != place:
            raise EvaluationError(
                f"{path}: questions {first[question.id]} and {place} have the same id '{question.id:.60}'"
            )
        named.append(question)
    return named


def _sample(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    return sorted(questions, key=lambda question: _hash(f"{seed}\x00{question.id}"))[:count]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
