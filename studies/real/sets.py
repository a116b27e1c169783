"""The study's question sets, written once from the files of a directory: questions, corpora, controls, demonstrations.

Nothing is downloaded, and no text of the sets is part of the repository. A file is JSON lines, plain or gz, each
`{"id", "question", "answers", "passages": [{"id", "title", "text"}], "gold": [ids]}`; PubMedQA is read as published.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regrad.data.jsonl import encode_jsonl, read_jsonl
from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.questions import normalise
from regrad.errors import EvaluationError
from regrad.storage import Storage
from studies.real.config import RealConfig

TRAINING = "squad_train"
HELD = "squad_held"
"""Training articles that are kept apart: to choose by, and to watch the outer loss on."""
SAME_ARTICLE = "same-article"
OTHER_QUESTIONS = "other-questions"
"""Tasks of squad_dev: what else people asked about the passages that are asked about. PRAG's adapters learn these."""
SHOTS = 4
_HELD_SHARE = 20
_MOST_WORDS = 5
_ENDINGS = (".jsonl.gz", ".jsonl", ".json.gz", ".json")
_YES_NO = {"boolq_dev": ("yes", "no"), "pubmedqa_dev": ("yes", "no", "maybe")}
MULTI_HOP = frozenset({"musique_dev_gold", "2wiki_mix"})
"""Sets whose questions have several gold passages."""


@dataclass(frozen=True)
class Asked:
    """A question with its gold passages, best first, and the file's other passages for it."""

    id: str
    question: str
    answers: tuple[str, ...]
    gold: tuple[Mapping[str, str], ...]
    others: tuple[Mapping[str, str], ...] = ()

    @property
    def order(self) -> str:
        """Where it comes in a draw: by its id alone, so that the order of the file does not matter."""
        return hashlib.sha256(self.id.encode()).hexdigest()


def write_sets(config: RealConfig) -> str:
    """Everything below `sets/`; returns one line.

    Raises `EvaluationError` for a file that is missing, or a question without gold.
    """
    training, held = _split(_read(config, TRAINING))
    demonstrations = [one for one in training if len(one.answers[0].split()) <= _MOST_WORDS][:SHOTS]
    _write(config, TRAINING, training, training, demonstrations)
    _write(config, HELD, held[: config.dev_questions], held, demonstrations)
    counts = []
    for name in config.sets:
        found = sorted(_read(config, name), key=lambda one: one.order)
        asked, rest = found[: config.questions], found[config.questions :]
        shown = demonstrations if name == "squad_dev" else _demonstrations(asked, rest)
        _write(config, name, asked, found, shown)
        if name == "squad_dev":
            storage = Storage(f"{config.output}/sets/{name}")
            storage.write(f"{SAME_ARTICLE}.jsonl", encode_jsonl(_same_article(asked, found)))
            storage.write(f"{OTHER_QUESTIONS}.jsonl", encode_jsonl(_other_questions(asked, rest)))
        counts.append(f"{name} {len(asked)}")
    return f"questions at {config.output}/sets: {', '.join(counts)}; {len(training)} to train on"


def _split(found: Iterable[Asked]) -> tuple[list[Asked], list[Asked]]:
    """By article: one in twenty is kept apart."""
    parts: tuple[list[Asked], list[Asked]] = ([], [])
    for one in sorted(found, key=lambda one: one.order):
        article = hashlib.sha256(one.gold[0]["title"].encode()).digest()
        parts[article[0] % _HELD_SHARE == 0].append(one)
    return parts


def _read(config: RealConfig, name: str) -> list[Asked]:
    path = _path(config, name)
    found = _pubmedqa(path) if name.startswith("pubmedqa") else [_asked(where, raw) for where, raw in read_jsonl(path)]
    if not found:
        raise EvaluationError(f"{path} has no questions", code="no_questions", path=path)
    return found


def _path(config: RealConfig, name: str) -> str:
    storage = Storage(config.data)
    for ending in _ENDINGS:
        if storage.exists(f"{name}{ending}"):
            return f"{config.data}/{name}{ending}"
    raise EvaluationError(
        f"{config.data} has no {name}.jsonl.gz; give the directory with the sets' files (--set data=DIRECTORY), or "
        "leave the set out (--set 'sets=[squad_dev]'); docs/real.md says what a file looks like",
        code="set_missing",
        set=name,
    )


def _asked(where: str, raw: Mapping[str, Any]) -> Asked:
    try:
        passages = {
            passage["id"]: {key: str(passage[key]) for key in ("id", "title", "text")} for passage in raw["passages"]
        }
        gold = tuple(passages.pop(name) for name in raw["gold"])
        if not gold or not raw["answers"]:
            raise KeyError("gold")
        return Asked(str(raw["id"]), raw["question"], tuple(raw["answers"]), gold, tuple(passages.values()))
    except (KeyError, TypeError) as error:
        raise EvaluationError(
            f"{where}: a question with id, question, answers, passages and gold (ids of some of them) is "
            f"expected, found the fields {sorted(raw)}",
            code="bad_question",
        ) from error


def _pubmedqa(path: str) -> list[Asked]:
    questions = read_questions(
        QuestionSetConfig(
            name="pubmedqa",
            path=path,
            format="pubmedqa",
        )
    )
    return [
        Asked(
            one.id,
            one.question,
            one.answers,
            tuple({"id": passage.id, "title": passage.title, "text": passage.text} for passage in one.passages),
        )
        for one in questions
    ]


def _demonstrations(asked: Sequence[Asked], rest: Sequence[Asked]) -> list[Asked]:
    """Short ones that are not asked: a file may ask the same again about another passage, as NQ-Swap's does."""
    taken = {normalise(one.question) for one in asked}
    return [one for one in rest if _is_short(one) and normalise(one.question) not in taken][:SHOTS]


def _is_short(one: Asked) -> bool:
    return len(one.answers[0].split()) <= _MOST_WORDS


def _write(
    config: RealConfig, name: str, asked: Sequence[Asked], found: Sequence[Asked], demonstrations: Sequence[Asked]
) -> None:
    storage = Storage(f"{config.output}/sets/{name}")
    corpus = {passage["id"]: passage for one in found for passage in (*one.gold, *one.others)}
    named = {passage["id"]: passage for one in asked for passage in one.gold}
    storage.write("corpus.jsonl", encode_jsonl(corpus.values()))
    storage.write("asked.jsonl", encode_jsonl(named.values()))
    storage.write("demonstrations.jsonl", encode_jsonl(_line(name, one) for one in demonstrations))
    storage.write("questions.jsonl", encode_jsonl(_line(name, one, one.gold) for one in asked))


def _line(name: str, one: Asked, passages: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    line: dict[str, Any] = {"id": one.id, "question": one.question, "answers": list(one.answers)}
    if name in _YES_NO:
        line |= {"kind": "yes-no", "choices": list(_YES_NO[name])}
    if passages:
        title = one.gold[0]["title"]
        line |= {"passages": list(passages), "passage_ids": [passage["id"] for passage in one.gold], "group": title}
    return line


def _same_article(asked: Sequence[Asked], found: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """The questions with another passage of their article, the next one by id, in place of their own."""
    articles = defaultdict[str, dict[str, Mapping[str, str]]](dict)
    for one in found:
        articles[one.gold[0]["title"]][one.gold[0]["id"]] = one.gold[0]
    for one in asked:
        own = one.gold[0]
        ids = sorted(articles[own["title"]])
        other = articles[own["title"]][ids[(ids.index(own["id"]) + 1) % len(ids)]]
        if other["id"] != own["id"]:
            line = _line("squad_dev", one, (other,))
            yield line | {"passage_ids": [other["id"]]}


def _other_questions(asked: Sequence[Asked], rest: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """A task for each passage that is asked about, of the questions about it that are not asked here."""
    passages = {one.gold[0]["id"]: one.gold[0] for one in asked}
    said = {normalise(one.question) for one in asked}
    others = defaultdict[str, list[dict[str, Any]]](list)
    for one in rest:
        if one.gold[0]["id"] in passages and normalise(one.question) not in said:
            pair = {"question": one.question, "answer": one.answers[0], "context": [0]}
            others[one.gold[0]["id"]].append(pair)
    for name, questions in others.items():
        yield {"id": name, "passages": [passages[name]], "questions": questions}
