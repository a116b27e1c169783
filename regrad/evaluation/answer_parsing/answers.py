"""What a generated text answers: a label for a closed question, or nothing that can be read as one.

Strict on purpose: what is not clearly one of the allowed answers is unparsable and is counted as such, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from regrad.data.questions import QUESTION_KINDS, YES_NO, Question
from regrad.errors import EvaluationError
from regrad.evaluation.answer_parsing.closed import Labels, Reader, Words
from regrad.evaluation.answer_parsing.statements import SAYS, begun, is_unsure, plain, sentences

_READ_CHARACTERS = 20_000
"""Nothing after this many characters is looked at."""
_MOST_SAYS, _MOST_LINES = 32, 200
_COT = "the answer is"


def allowed_answers(question: Question) -> tuple[str, ...]:
    """The labels A, B, ... or the words, in lower case, that answer a closed question; empty for an open one."""
    return () if question.kind == "open" else _reader(question.kind, question.choices).answers


def accepted_answers(question: Question) -> frozenset[str]:
    """Those of the allowed answers that are right; raises `EvaluationError` if an answer is not an allowed one."""
    allowed = {answer.casefold(): answer for answer in allowed_answers(question)}
    wrong = [answer for answer in question.answers if answer.strip().casefold() not in allowed]
    if wrong or not question.answers:
        found = repr(wrong[0])[:60] if wrong else "none"
        raise EvaluationError(f"the right answer must be one of {', '.join(allowed.values())}; found {found}")
    return frozenset(allowed[answer.strip().casefold()] for answer in question.answers)


def parse_answer(question: Question, text: str) -> str | None:
    """The answer of a closed question that `text` gives (one of `allowed_answers`), or None if it gives none.

    It is what the text says that the answer is ("answer is", "Answer:", "\\boxed{", "B is correct"), together with a
    line that is an answer and nothing else; if it says nothing of this kind, that with which it begins. A prompt that
    the model goes on to write is not looked at, nor are the options if they are repeated. Two answers at once ("yes or
    no", "A and B", "the answer is A ... the answer is B") are none, nor is one that is denied or in doubt ("B is
    wrong", "no evidence", "I don't think the answer is B"). Of an open question it is the text, or None if that is
    blank.
    """
    text = text[:_READ_CHARACTERS].strip()
    if question.kind == "open":
        return text or None
    reader, text = _reader(question.kind, question.choices), plain(text)
    lines = set(filter(None, map(reader.alone, text.splitlines()[:_MOST_LINES])))
    listed = len(lines) > 1 or reader.lists(text)
    found = {*_said(reader, text)} | (set() if listed else lines)
    if not found and not listed and (first := reader.leading(begun(text))):
        found = {first}
    return found.pop() if len(found) == 1 else None


def _said(reader: Reader, text: str) -> Iterator[str]:
    """What the text says that the answer is."""
    for says in islice(SAYS.finditer(text), _MOST_SAYS):
        found = reader.leading(text[says.end() :])
        if found and not is_unsure(text[: says.start()]):
            yield found
    yield from filter(None, map(reader.asserted, sentences(text)))


@lru_cache(maxsize=4096)
def _reader(kind: str, choices: tuple[str, ...]) -> Reader:
    if kind == "choice":
        return Labels(choices)
    if kind == "yes-no":
        return Words(choices or YES_NO)
    raise EvaluationError(f"unknown kind of question {kind!r:.60}; the kinds are {', '.join(QUESTION_KINDS)}")


def cut_answer(text: str) -> str:
    """An open answer cut as PRAG's evaluation does: after the first "the answer is", up to '.', ',' or a newline.

    Source: `evaluate` in the PRAG release's src/utils.py, with chain of thought; the marker's case counts there too.
    It cuts "U.S." to "U" and "1,000" to "1": use it to compare with PRAG's numbers.
    """
    said = text.partition(_COT)[2] if _COT in text else text
    for stop in (".", "\n", ","):
        said = said.strip().partition(stop)[0]
    return said.strip()


def prediction_of(question: Question, raw: str, cut: bool = False) -> str:
    """The prediction in a generated text: a label or a word (empty if unparsable), or the open answer, cut or not."""
    if question.kind == "open" and cut:
        return cut_answer(raw)
    return parse_answer(question, raw) or ""
