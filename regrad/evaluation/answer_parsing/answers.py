"""The answer in a generated text: a label or a word for a closed question, or nothing that can be read as one.

Strict on purpose: what is not clearly one of the allowed answers is unparsable and is counted as such, never guessed.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Protocol

from regrad.data.questions import QUESTION_KINDS, YES_NO, ClosedReader, Question, normalise
from regrad.errors import EvaluationError
from regrad.evaluation.answer_parsing.release import release_answer
from regrad.evaluation.answer_parsing.statements import (
    IT_IS,
    SAYS,
    begun,
    is_asserted,
    is_contradicted,
    is_denied,
    is_denied_word,
    is_determiner,
    is_unsure,
    plain,
    sentences,
)

# Only this much of a text is read.
_READ_CHARACTERS = 20_000
_MOST_SAYS = 32
_MOST_LINES = 200
_COT = "the answer is"

_AND_OR = r"\s*(?:and/or|and\b|or\b|nor\b|but\b|[,;/|&])\s*"
_OPENING = r"[\s\"'“‘(\[{<\-]*"
_CLOSED = re.compile(r"\s*$|[)\]}:>]|\.(?!\w\.)")
_CLOSED_CAPITAL = re.compile(r"[,;\"'”’]|\s*\n|\s+[-–—=]|\s+(?:is|would|should|must|because|since|it\s+is)\b")
_CLAUSE_END = re.compile(r"[.!?]\s+|\n")
_LABEL_IS_ARTICLE = re.compile(r"a\b")
# A text of few tokens often breaks off inside an option that it repeats. Fewer words than these could be anything.
_WORDS_AFTER_LABEL, _WORDS_OF_OPTION = 3, 4


def allowed_answers(question: Question) -> tuple[str, ...]:
    """The labels A, B, ... or the words, in lower case, that answer a closed question; empty for an open one."""
    return () if question.kind == "open" else _reader(question.kind, question.choices).answers


def accepted_answers(question: Question) -> frozenset[str]:
    """The right ones of the allowed answers; raises `EvaluationError` if one of the answers is not allowed."""
    allowed = {answer.casefold(): answer for answer in allowed_answers(question)}
    wrong = [answer for answer in question.answers if answer.strip().casefold() not in allowed]
    if wrong or not question.answers:
        found = repr(wrong[0])[:60] if wrong else "none"
        raise EvaluationError(
            f"the right answer must be one of {', '.join(allowed.values())}; found {found}",
            code="answer_not_allowed",
            allowed=list(allowed.values()),
            found=wrong,
        )
    return frozenset(allowed[answer.strip().casefold()] for answer in question.answers)


def parse_answer(question: Question, text: str, reader: ClosedReader = "strict") -> str | None:
    """The answer that `text` gives to a closed question (one of `allowed_answers`), or None if it gives none.

    Two answers at once ("yes or no", "A and B", "the answer is A ... the answer is B") are none, nor is one that is
    denied or in doubt ("B is wrong", "no evidence", "I don't think the answer is B"). For an open question it is the
    text, or None if that is blank. With the reader "release" a closed question's answer is what `release_answer` reads.
    """
    text = text[:_READ_CHARACTERS].strip()
    if question.kind == "open":
        return text or None
    rules = _reader(question.kind, question.choices)
    if reader == "release":
        return release_answer(question, text)
    text = plain(text)  # also without a next prompt that the model goes on to write

    # 1. What the text says that the answer is: "answer is", "Answer:", "\\boxed{", "B is correct".
    found: set[str] = set()
    for says in islice(SAYS.finditer(text), _MOST_SAYS):
        answer = rules.leading(text[says.end() :])
        if answer and not is_unsure(text[: says.start()]):
            found.add(answer)
    found.update(filter(None, map(rules.asserted, sentences(text))))

    # 2. A line that is an answer and nothing else, unless the text repeats the options.
    lines = set(filter(None, map(rules.alone, text.splitlines()[:_MOST_LINES])))
    listed = len(lines) > 1 or rules.lists(text)
    if not listed:
        found |= lines

    # 3. If it says nothing of this kind, its beginning.
    if not found and not listed and (first := rules.leading(begun(text))):
        found = {first}
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=4096)
def _reader(kind: str, choices: tuple[str, ...]) -> AnswerReader:
    if kind == "choice":
        return Labels(choices)
    if kind == "yes-no":
        return Words(choices or YES_NO)
    raise EvaluationError(
        f"unknown kind of question {kind!r:.60}; the kinds are {', '.join(QUESTION_KINDS)}",
        code="unknown_kind",
        found=kind,
    )


def cut_answer(text: str) -> str:
    """An open answer cut as PRAG's evaluation cuts it: after the first "the answer is", up to '.', ',' or a newline.

    Source: `evaluate` in the PRAG release's src/utils.py, with chain of thought; the marker's case matters there, too.
    It cuts "U.S." to "U" and "1,000" to "1", so use it only to compare with PRAG's numbers.
    """
    said = text.partition(_COT)[2] if _COT in text else text
    for stop in (".", "\n", ","):
        said = said.strip().partition(stop)[0]
    return said.strip()


def prediction_of(question: Question, raw: str, cut: bool = False, reader: ClosedReader = "strict") -> str:
    """The prediction in a generated text: a label or a word (empty if unparsable), or the open answer, maybe cut."""
    if question.kind == "open" and cut:
        return cut_answer(raw)
    return parse_answer(question, raw, reader) or ""


class AnswerReader(Protocol):
    """Reads an allowed answer, or None."""

    answers: tuple[str, ...]

    def alone(self, line: str) -> str | None:
        """The answer if the line says nothing else."""
        ...

    def leading(self, text: str) -> str | None:
        """The answer with which the text begins."""
        ...

    def asserted(self, sentence: str) -> str | None:
        """The answer with which the sentence begins and which it says to be right."""
        ...

    def lists(self, text: str) -> bool:
        """Whether the text repeats the options, line by line."""
        ...


class Words:
    """Allowed words, in any case; several of them at once are no answer, nor is the "no" of "no evidence"."""

    def __init__(self, words: Sequence[str]) -> None:
        self.answers = tuple(word.strip().lower() for word in words)
        if len(set(self.answers)) < len(words) or len(words) < 2 or not all(map(normalise, self.answers)):
            raise EvaluationError(
                f"a yes-no question needs at least two different words, found {list(words)!r:.200}",
                code="too_few_words",
                words=list(words),
            )
        word = "|".join(re.escape(word) for word in sorted(self.answers, key=len, reverse=True))
        self._alone = re.compile(rf"\W*({word})(?:\W+\1)*\W*", re.IGNORECASE)
        self._leading = re.compile(rf"{_OPENING}(?:{IT_IS}(?:a\s+)?)?({word})(?!['’-]?\w)", re.IGNORECASE)
        self._next = re.compile(rf"((?:{_AND_OR}|\s+)(?:{_AND_OR})?)({word})(?!\w)", re.IGNORECASE)
        self._clause = re.compile(
            rf"[,;:]\s*(?:(?:so|but|and|or|\w+ly)\s+){{0,3}}({word})\s*(?=[.,;!?\n]|$)", re.IGNORECASE
        )
        self._concluded = re.compile(
            rf"(?<!\bif )\b(?:so|thus|hence|therefore)\b,?\s+({word})\s*(?=[.,;!\n]|$)", re.IGNORECASE
        )

    def alone(self, line: str) -> str | None:
        """The word if the line has no other."""
        match = self._alone.fullmatch(line)
        return match[1].lower() if match else None

    def leading(self, text: str) -> str | None:
        """The first word of the text, unless it is denied, or a later sentence or clause gives another.

        A text that begins with none gives the one with which it concludes: "It was not. No.", "He was late, so no".
        """
        concluded = {match[1].lower() for match in self._concluded.finditer(text)}
        if first := self._first(text):
            said = concluded | {word for part in sentences(text) if (word := self._first(part))}
            said |= {match[1].lower() for match in self._clause.finditer(text)}
            return first if said == {first} else None
        concluded.update(filter(None, (self.alone(begun(part)) for part in _CLAUSE_END.split(text)[1:])))
        return concluded.pop() if len(concluded) == 1 else None

    def asserted(self, sentence: str) -> str | None:
        """None: a word that is said to be right comes first, and `leading` finds it there."""
        return None

    def lists(self, text: str) -> bool:
        """False: the words of a question are not listed beside labels."""
        return False

    def _first(self, text: str) -> str | None:
        match = self._leading.match(text)
        rest = text[match.end() :] if match else ""
        if not match or is_determiner(match[1], rest) or is_denied_word(rest) or is_contradicted(match[1], rest):
            return None
        other = self._next.match(rest)
        if other and other[2].lower() != match[1].lower():
            # "Yes, no question about it" says one thing, "Yes or no questions" and "Yes, no" do not.
            is_choice = re.search(r"\bn?or\b|[/|]", other[1], re.IGNORECASE)
            if is_choice or not is_determiner(other[2], rest[other.end() :]):
                return None
        return match[1].lower()


class Labels:
    """Labels A, B, ... of options, or an option's whole text.

    A capital letter is a label if it is followed by nothing, a bracket, punctuation, "is", "because" or the option's
    own text; a small one only if by nothing, a bracket or a full stop. So "A patient" and "C-reactive" are no labels,
    nor is one that is denied: "B is wrong".
    """

    def __init__(self, options: Sequence[str]) -> None:
        if not 2 <= len(options) <= len(string.ascii_uppercase):
            raise EvaluationError(
                f"a choice needs 2 to 26 options, found {len(options)}", code="bad_options", options=len(options)
            )
        self.answers = tuple(string.ascii_uppercase[: len(options)])
        self._texts = tuple(options)
        self._options = tuple(normalise(option) for option in options)
        letters = f"A-{self.answers[-1]}"
        label = r"(?:(?:option|choice|answer)\W*)?"
        self._alone = re.compile(rf"\W*{label}([{letters}])(?:\W+{label}\1)*\W*", re.IGNORECASE)
        named = rf"{_OPENING}(?i:(?:the\s+)?(?:option|choice|answer|letter)\s*[(\[]?)?"
        self._it_is = re.compile(IT_IS, re.IGNORECASE)
        self._leading = re.compile(rf"{named}([{letters}{letters.lower()}])(?:[\s,.]+\1)*(?!['’]?\w)")
        maybe = r"(?:(?:maybe|perhaps|possibly)\s+)?"
        self._next = re.compile(rf"[)\].:]?(?:{_AND_OR}){{1,2}}{maybe}[(\[]?([{letters}])(?![\w'’-])")
        self._listed = re.compile(rf"[)\].:]*\s*[(\[]?([{letters}])(?:[)\].:,;]|\s*$)")
        self._line = re.compile(rf"^\W*(?:answer\W+)?([{letters}])(?:[)\].:]|[ \t]*$)", re.IGNORECASE | re.MULTILINE)
        self._right = re.compile(rf"\b([{letters}])\W+(?=is\b)")

    def alone(self, line: str) -> str | None:
        """The option whose label, or text, or both, the line is."""
        match = self._alone.fullmatch(line)
        if match:
            return match[1].upper()
        match = self._leading.match(line)
        if match and normalise(line[match.end() :]) == self._option(match[1]) != "":
            return match[1].upper()
        return self._by_text(line)

    def leading(self, text: str) -> str | None:
        """The option with whose label the text begins, or that its first line or first sentence is.

        Also the only option that begins as the text does, if the text is long enough to tell: it was cut off.
        """
        if it_is := self._it_is.match(text):
            text = text[it_is.end() :]
            if _LABEL_IS_ARTICLE.match(text):
                return None
        match = self._leading.match(text)
        if match and self._is_closed(match[1], text[match.end() :]):
            return None if self._several(match, text) or self._denied(match, text) else match[1].upper()
        line = text.strip().partition("\n")[0]
        sentence = re.split(r"\.\s", line, maxsplit=1)[0]
        return self._by_text(line) or self._by_text(sentence) or self._by_beginning(text)

    def asserted(self, sentence: str) -> str | None:
        """The option whose label, or text, is the subject of "is correct", "would be the best choice" and the like."""
        match = self._leading.match(sentence)
        if match and is_asserted(sentence[match.end() :], self._texts[self.answers.index(match[1].upper())]):
            return None if not match[1].isupper() or self._several(match, sentence) else match[1]
        said = [
            label
            for label, text in zip(self.answers, self._texts, strict=True)
            if len(text) < len(sentence) and sentence.lower().startswith(text.lower())
            if is_asserted(sentence[len(text) :])
        ]
        return said[0] if len(said) == 1 else None

    def lists(self, text: str) -> bool:
        """Whether lines begin with A and then B, as the options do; the last one may be cut."""
        return [match[1] for match in self._line.finditer(text)][:2] == ["A", "B"]

    def _option(self, label: str) -> str:
        return self._options[self.answers.index(label.upper())]

    def _several(self, match: re.Match[str], text: str) -> bool:
        """Whether other labels are listed with this one, or are said to be right, too."""
        rest = text[match.end() :]
        own = self._texts[self.answers.index(match[1].upper())]
        others = [self._next.match(rest)]
        if own and own in rest[: len(own) + 10]:
            rest = rest[rest.index(own) + len(own) :]
            beside = [self._next.match(rest), self._listed.match(rest)]
            others += [other for other in beside if other and not is_denied(rest[other.end() :])]
        else:
            others.append(self._listed.match(rest))
        others += [other for other in self._right.finditer(rest) if not is_denied(rest[other.end() :])]
        if any(other and other[1] != match[1].upper() for other in others):
            return True
        # A text that repeats all options begins with A, too, and has not chosen it.
        words = normalise(text)
        return match[1] == "A" and all(option and option in words for option in self._options)

    def _denied(self, match: re.Match[str], text: str) -> bool:
        return is_denied(text[match.end() :], self._texts[self.answers.index(match[1].upper())])

    def _by_text(self, said: str) -> str | None:
        words = normalise(said)
        same = [label for label, option in zip(self.answers, self._options, strict=True) if words and option == words]
        return same[0] if len(same) == 1 else None

    def _by_beginning(self, text: str) -> str | None:
        words = normalise(text)
        if len(words.split()) < _WORDS_OF_OPTION:
            return None
        begun_so = [
            label for label, option in zip(self.answers, self._options, strict=True) if option.startswith(words)
        ]
        return begun_so[0] if len(begun_so) == 1 else None

    def _is_closed(self, label: str, rest: str) -> bool:
        """Whether a letter is a label, by what follows it."""
        option = self._option(label)
        if _CLOSED.match(rest) or (label.isupper() and _CLOSED_CAPITAL.match(rest)):
            return True
        if not label.isupper() or not option:
            return False
        said = normalise(rest[: 4 * len(option) + 100])
        is_cut_off = len(said.split()) >= _WORDS_AFTER_LABEL and option.startswith(said)
        return is_cut_off or f"{said} ".startswith(f"{option} ")
