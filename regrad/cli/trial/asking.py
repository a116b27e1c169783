"""Questions in every way: one, or a file of solved ones with the share that each way gets right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from regrad.cli.options import printable
from regrad.client import AnswerClient
from regrad.data.jsonl import encode_jsonl
from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.questions import Question, normalise
from regrad.errors import ConfigError, EvaluationError
from regrad.evaluation.metrics import score
from regrad.storage import Storage
from regrad.text import counted
from serve_app.config import LimitsConfig

WAYS = ("direct", "rag", "regrad", "regrad+icl")
ANSWERS = "answers.jsonl"
_SHOWN_QUESTIONS = 30
_TOKENS = 48
"""Of a reply: enough for a sentence, as a model that is not trained to be brief may say the answer at its end."""


@dataclass(frozen=True)
class WayReply:
    """What the server answered to a question in one way."""

    way: str
    text: str
    passages: tuple[str, ...]
    prompt_tokens: int
    milliseconds: float

    @classmethod
    def to(cls, client: AnswerClient, question: str, way: str, k: int) -> WayReply:
        """Ask; raises `ServeError`."""
        answer: dict[str, Any] = client.answer(question, method=way, k=k, max_new_tokens=_TOKENS)
        found = tuple(passage["id"] for passage in answer["passages"])
        used, took = answer["usage"]["prompt_tokens"], answer["milliseconds"]["total"]
        return cls(way, answer["answer"].strip(), found, used, took)

    def holds(self, question: Question) -> bool:
        """Whether the words of an accepted answer stand in the reply, next to each other."""
        said = f" {normalise(self.text)} "
        return any(f" {words} " in said for words in map(normalise, question.answers) if words)


def read_asked(path: str, limits: LimitsConfig) -> list[Question]:
    """The solved questions of a file of JSON lines, each of which a server with these limits takes.

    Raises `EvaluationError` or `StorageError`: also for a question that is answered with one of given words, or that
    has turns, as those are for `regrad eval`.
    """
    questions = read_questions(QuestionSetConfig(name="questions", path=path, format="jsonl"))
    for one in questions:
        if one.kind != "open" or one.turns:
            what = "turns before it" if one.turns else f"the kind '{one.kind}'"
            raise EvaluationError(
                f"{path}: question {one.id:.60} has {what}; here only open questions by themselves are asked: use "
                "`regrad eval` for others",
                code="not_open",
                uri=path,
                id=one.id,
            )
        if len(one.question) > limits.max_question_characters:
            raise EvaluationError(
                f"{path}: question {one.id:.60} has {len(one.question):,} characters, and the server takes "
                f"{limits.max_question_characters:,} (serve.limits.max_question_characters)",
                code="question_too_long",
                uri=path,
                id=one.id,
            )
    return questions


def check_limits(k: int, limits: LimitsConfig) -> None:
    """Raise `ConfigError` if a server with these limits would refuse what is asked of it."""
    for name, wanted, most in (("max_k", k, limits.max_k), ("max_new_tokens", _TOKENS, limits.max_new_tokens)):
        if wanted > most:
            raise ConfigError(
                f"{wanted} is above serve.limits.{name}, which is {most}; set that higher",
                code="above_the_servers_limit",
                key=f"serve.limits.{name}",
                value=wanted,
                most=most,
            )


def show_answers(url: str, question: str, k: int) -> None:
    """One question in every way, with the passages that each saw."""
    client = AnswerClient(url)
    table = Table(title=_cell(question), title_justify="left")
    for heading in ("way", "answer", "from", "prompt", "ms"):
        table.add_column(heading, justify="right" if heading in ("prompt", "ms") else "left", overflow="fold")
    for way in WAYS:
        reply = WayReply.to(client, question, way, k)
        found = Text("\n".join(map(printable, reply.passages)), overflow="fold")
        table.add_row(way, _cell(reply.text), found, str(reply.prompt_tokens), f"{reply.milliseconds:.0f}")
    Console().print(table)


def ask_all(url: str, questions: Sequence[Question], k: int, output: str) -> None:
    """Every question in every way: who was right, and the replies as lines of `answers.jsonl` in `output`.

    If it is interrupted, or the server fails, what was answered until then is written and shown.
    """
    client = AnswerClient(url)
    asked: list[tuple[Question, list[WayReply]]] = []
    try:
        for one in track(questions, "asking", console=Console(stderr=True), transient=True):
            asked.append((one, [WayReply.to(client, one.question, way, k) for way in WAYS]))
    finally:
        if asked:
            Storage(output).write(ANSWERS, encode_jsonl([_record(one, replies) for one, replies in asked]))
            _show(asked, k, f"{output}/{ANSWERS}")


def _show(asked: Sequence[tuple[Question, Sequence[WayReply]]], k: int, place: str) -> None:
    console = Console()
    if len(asked) <= _SHOWN_QUESTIONS:
        console.print(_replies_table(asked))
    console.print(_scores_table(asked, k))
    console.print(Text(f"the replies are in {place}"))


def _record(question: Question, replies: Sequence[WayReply]) -> dict[str, Any]:
    said = {
        one.way: {"answer": one.text, "holds_answer": one.holds(question), "passages": list(one.passages)}
        for one in replies
    }
    return {"id": question.id, "question": question.question, "answers": list(question.answers), "replies": said}


def _replies_table(asked: Sequence[tuple[Question, Sequence[WayReply]]]) -> Table:
    table = Table("question", *WAYS)
    for question, replies in asked:
        said = (f"{'✓' if one.holds(question) else '✗'} {one.text}" for one in replies)
        table.add_row(*map(_cell, (question.question, *said)))
    return table


def _scores_table(asked: Sequence[tuple[Question, Sequence[WayReply]]], k: int) -> Table:
    """A way's number of replies that hold an answer, its exact match and F1 in percent, and what it costs."""
    table = Table("way", title=f"{counted(len(asked), 'question')}, k={k}", title_justify="left")
    for heading in ("hold the answer", "EM", "F1", "prompt tokens", "ms"):
        table.add_column(heading, justify="right")
    questions = [question for question, _ in asked]
    for way, *replies in zip(WAYS, *(replies for _, replies in asked), strict=True):
        pairs = list(zip(questions, replies, strict=True))
        scores = [score(question, reply.text) for question, reply in pairs]
        held = sum(reply.holds(question) for question, reply in pairs)
        shares = [100 * fmean(one.em for one in scores), 100 * fmean(one.f1 for one in scores)]
        costs = [fmean(one.prompt_tokens for one in replies), fmean(one.milliseconds for one in replies)]
        table.add_row(
            way, f"{held} of {len(asked)}", *(f"{one:.1f}" for one in shares), *(f"{one:.0f}" for one in costs)
        )
    return table


def _cell(text: str) -> Text:
    """Of a text that is not ours: no character acts on the terminal, and no bracket is taken for a style."""
    return Text(printable(text), overflow="fold")
