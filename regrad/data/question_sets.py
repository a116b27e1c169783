"""A question set from its settings: read, checked, and cut to the questions asked for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from regrad.data.formats import conversations, jsonl, law, medicine, open_domain, regrad_release, searches, squad
from regrad.data.question_files import QuestionFile, open_file, unpacked_name
from regrad.data.questions import YES_NO, ClosedReader, Question, QuestionKind
from regrad.errors import EvaluationError
from regrad.registry import Registry
from regrad.settings import Location, Settings

_HOTPOTQA_RULES = ("hotpotqa", "2wikimultihopqa")


class QuestionSetConfig(Settings):
    """A question set: one file in one of the formats of `regrad.data.question_sets.READERS`."""

    MOVED: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"first": "limit", "cut": "prag_style_cut"}

    name: str = Field(min_length=1, description="the set's name in tables and records")
    path: Location = Field(description="a file, plain or compressed (gz, bz2, xz, zip)")
    format: str = Field("jsonl", description="the name of a reader, such as hotpotqa")
    limit: int | None = Field(None, ge=1, description="at most this many questions, from the beginning of the file")
    sample: int | None = Field(
        None, ge=1, description="at most this many of these, drawn by id, regardless of their order"
    )
    seed: int = Field(0, description="seed of the sample")
    sha256: str | None = Field(
        None,
        pattern="^([0-9a-f]{64}|any)$",
        description="SHA-256 of the file as it is stored; null: that of the published file (unpacked), if the file has "
        "its name, compressed or not",
    )
    kind: QuestionKind | None = Field(None, description="ask the questions as this kind; null: as the format says")
    rules: Literal["squad", "hotpotqa"] | None = Field(
        None,
        description="how open answers are scored: with hotpotqa, yes, no and noanswer get no partial credit; null: "
        "hotpotqa for the formats hotpotqa and 2wikimultihopqa, as in their own scripts, otherwise squad",
    )
    prag_style_cut: bool = Field(
        False,
        description="cut open answers as PRAG does: after 'the answer is' if present, up to '.', ',' or a new line",
    )
    reader: ClosedReader = Field(
        "strict",
        description="how answers to closed questions are read; release: by the rules of the ReGrad release, which take "
        "the first yes or no for an answer ('no evidence')",
    )
    aliases: Location | None = Field(None, description="2WikiMultihopQA's id_aliases.json, if available")

    @property
    def scoring_rules(self) -> Literal["squad", "hotpotqa"]:
        """The rules for open answers."""
        return self.rules or ("hotpotqa" if self.format in _HOTPOTQA_RULES else "squad")


PUBLISHED = {
    "2wikimultihopqa": {
        "dev.json": "79f77ae104088ea8e25b1a65dbece768d45771194663bc5660ec9a98070dadf5",  # of data_ids_april7.zip
        "2wikimultihopqa.json": "895cba294064df0c3302c76847b1fc08d99b5619f7663dfaa3b65cd780f1cac4",  # HippoRAG's
    },
    "hotpotqa": {
        "hotpot_train_v1.1.json": "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316",
        "hotpot_dev_distractor_v1.json": "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea",
        "hotpot_dev_fullwiki_v1.json": "2f1f3e594a3066a3084cc57950ca2713c24712adaad03af6ccce18d1846d5618",
    },
    "musique": {
        "musique_ans_v1.0_train.jsonl": "83a75b1e11e4e9bb8f8308e72ac40ca617ae4431b3a0d955b61cab259248490a",
        "musique_ans_v1.0_dev.jsonl": "15fa63794d18a94ce12411aca6e2327e65b6e83b0b1490efab3f1962e48abf3b",
        "musique_full_v1.0_train.jsonl": "b1cd998f7e0e2838d6fda024e4ad1eb0e7fc3edefdadb0bd9b5b10b0907f2034",
        "musique_full_v1.0_dev.jsonl": "8cab31d56a3a1c4ef491b205a8dab3f1ac9c66e472098c6cf1de4e20294f7a4a",
    },
    "popqa": {"popQA.tsv": "9a5227f41bff0e4c331d4a774d946b12f95307892b58f860a9606ef356e6089b"},
    "nq": {
        "NQ-open.train.jsonl": "0c93aaf13b12f855628489665e4ef85ffb8573ad444646f11f4fabdc57a0aabf",
        "NQ-open.dev.jsonl": "f15567f38099f3615f5b8a685c0aef449c11ad90d3da3735e8d1b98115b40616",
    },
    "pubmedqa": {"ori_pqal.json": "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d"},
}
"""SHA-256 (hex) of published files, unpacked, by format and file name."""


def published_checksum(config: QuestionSetConfig) -> str | None:
    """The checksum that a set's file must have, unpacked, if it has a published file's name, compressed or not.

    None if it has another name, or if the settings state a checksum or `any`.
    """
    if config.sha256 is not None:
        return None
    return PUBLISHED.get(config.format, {}).get(unpacked_name(config.path))


QuestionReader = Callable[[QuestionFile], Iterator[Question]]

READERS: Registry[QuestionReader] = Registry(
    "question format",
    EvaluationError,
    {
        "2wikimultihopqa": open_domain.two_wiki,
        "hotpotqa": open_domain.hotpotqa,
        "complexwebquestions": open_domain.complex_web_questions,
        "musique": open_domain.musique,
        "bamboogle": open_domain.bamboogle,
        "squad": squad.squad,
        "popqa": open_domain.popqa,
        "nq": open_domain.natural_questions,
        "triviaqa": open_domain.triviaqa,
        "ms-marco": open_domain.ms_marco,
        "or-quac": conversations.or_quac,
        "doqa": conversations.doqa,
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
        "beir": searches.beir,
        "topics": searches.topics,
    },
)
"""Every format by name. A new one is one function and one entry here."""


def read_questions(config: QuestionSetConfig) -> list[Question]:
    """The questions of a set; raises `EvaluationError` for an unknown format and for anything wrong with the file."""
    return read_set(config)[0]


def read_set(config: QuestionSetConfig) -> tuple[list[Question], Counter[str]]:
    """The questions of a set, and how many of the file its reader leaves out, by the reason; raises as above.

    Also raises `EvaluationError` for a question without answers, which nothing but a search can be measured by.

    `limit` takes from the beginning of the file. `sample` draws from these by a hash of seed and id, in the order of
    that hash: a larger sample begins with the smaller one, and the order of the file does not matter.
    """
    asked, left_out = _read_set(config)
    if without := next((question for question in asked if not question.answers), None):
        raise EvaluationError(
            f"{config.path}: question '{without.id:.60}' has no answer; the format '{config.format}' is of questions "
            "to search for, which `regrad eval-retrieval` measures",
            code="no_answers",
            uri=config.path,
            id=without.id,
        )
    return asked, left_out


def read_queries(config: QuestionSetConfig) -> list[Question]:
    """As `read_questions`, for what only searches: questions may be without answers."""
    return _read_set(config)[0]


def _read_set(config: QuestionSetConfig) -> tuple[list[Question], Counter[str]]:
    reader = READERS[config.format]
    stated = None if config.sha256 == "any" else config.sha256
    file = replace(open_file(config.path, stated, config.aliases, published_checksum(config)), kind=config.kind)
    questions = _named(reader(file), config.path)
    if not questions:
        raise EvaluationError(
            f"{config.path} holds no questions that the format '{config.format}' takes",
            code="no_questions",
            uri=config.path,
        )
    words = _words(questions)  # of all of them: a part of the set is asked with the same prompt
    questions = questions[: config.limit]
    if config.sample is not None:
        questions = sorted(questions, key=lambda question: _hash(f"{config.seed}\x00{question.id}"))[: config.sample]
    asked = [q.as_kind(config.kind or q.kind, f"{config.path} question '{q.id:.60}'", words) for q in questions]
    return asked, file.left_out


def _words(questions: Iterable[Question]) -> tuple[str, ...]:
    """What open questions are answered with if they are asked as yes-no: PubMedQA's third word, if any is."""
    answers = {answer.lower() for question in questions for answer in question.answers}
    return (*YES_NO, "maybe") if "maybe" in answers else YES_NO


def read_demonstrations(config: QuestionSetConfig, path: str, count: int | None) -> list[Question]:
    """Solved questions, all or at most `count` from the beginning of a file, in the format of the set that gets them.

    Raises `EvaluationError` as `read_questions`.
    """
    taken = config.model_dump(include={"name", "format", "kind", "aliases"})
    return read_questions(QuestionSetConfig(path=path, limit=count, **taken))


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
                f"{path}: questions {first[question.id]} and {place} have the same id '{question.id:.60}'",
                code="duplicate_id",
                uri=path,
                id=question.id,
                places=[first[question.id], place],
            )
        named.append(question)
    return named


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
