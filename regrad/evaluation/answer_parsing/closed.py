"""Reading one of a few allowed answers from the beginning of a text: words such as yes and no, or labels A, B, C."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Protocol

from regrad.errors import EvaluationError
from regrad.evaluation.answer_parsing.statements import (
    is_asserted,
    is_contradicted,
    is_denied,
    is_denied_word,
    is_determiner,
    normalise,
    sentences,
)

_AND_OR = r"\s*(?:and/or|and\b|or\b|nor\b|but\b|[,;/|&])\s*"
_OPENING = r"[\s\"'“‘(\[{<\-]*"


class Reader(Protocol):
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
    """Allowed words, in any case; more than one of them at once is no answer, nor is the "no" of "no evidence"."""

    def __init__(self, words: Sequence[str]) -> None:
        self.answers = tuple(word.strip().lower() for word in words)
        if len(set(self.answers)) < len(words) or len(words) < 2 or not all(map(normalise, self.answers)):
            raise EvaluationError(f"a yes-no question needs two or more different words, found {list(words)!r:.200}")
        word = "|".join(re.escape(word) for word in sorted(self.answers, key=len, reverse=True))
        self._alone = re.compile(rf"\W*({word})\W*", re.IGNORECASE)
        self._leading = re.compile(rf"{_OPENING}({word})(?![\w'’]|-\w)", re.IGNORECASE)
        self._next = re.compile(rf"(?:{_AND_OR}|\s+)(?:{_AND_OR})?({word})(?!\w)", re.IGNORECASE)
        self._clause = re.compile(
            rf"[,;:]\s*(?:(?:so|but|and|or|\w+ly)\s+){{0,3}}({word})\s*(?=[.,;!?\n]|$)", re.IGNORECASE
        )

    def alone(self, line: str) -> str | None:
        """The word if the line has no other."""
        match = self._alone.fullmatch(line)
        return match[1].lower() if match else None

    def leading(self, text: str) -> str | None:
        """The first word of the text, unless it is denied, or a later sentence or clause is another."""
        said = {word for part in sentences(text) if (word := self._first(part))}
        said |= {match[1].lower() for match in self._clause.finditer(text)}
        first = self._first(text)
        return first if len(said | {first}) == 1 else None

    def asserted(self, sentence: str) -> str | None:
        """None: a word that is said to be right stands first, and is found there."""
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
        return None if other and other[1].lower() != match[1].lower() else match[1].lower()


class Labels:
    """Labels A, B, ... of options, or an option's whole text.

    A capital letter is a label if nothing follows, or a bracket, punctuation, "is", "because" or the option's own
    text; a small one only if nothing or a bracket or full stop follows. So "A patient" and "C-reactive" are none, nor
    is what is denied: "B is wrong".
    """

    def __init__(self, options: Sequence[str]) -> None:
        if not 2 <= len(options) <= len(string.ascii_uppercase):
            raise EvaluationError(f"a choice needs 2 to 26 options, found {len(options)}")
        self.answers = tuple(string.ascii_uppercase[: len(options)])
        self._texts = tuple(options)
        self._options = tuple(normalise(option) for option in options)
        letters = f"A-{self.answers[-1]}"
        self._alone = re.compile(rf"\W*(?:(?:option|choice|answer)\W*)?([{letters}])\W*", re.IGNORECASE)
        named = rf"{_OPENING}(?i:(?:the\s+)?(?:option|choice|answer|letter)\s*[(\[]?)?"
        self._leading = re.compile(rf"{named}([{letters}{letters.lower()}])(?![\w'’])")
        self._next = re.compile(rf"[)\].:]?{_AND_OR}[(\[]?([{letters}])(?![\w'’-])")
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
        """The option with whose label the text begins, or that its first line or first sentence is."""
        match = self._leading.match(text)
        if match and _closed(match[1], text[match.end() :], self._option(match[1])):
            return None if self._several(match, text) or self._denied(match, text) else match[1].upper()
        line = text.strip().partition("\n")[0]
        return self._by_text(line) or self._by_text(re.split(r"\.\s", line, maxsplit=1)[0])

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
        """Whether other labels stand beside this one, or are said to be right, too."""
        rest, own = text[match.end() :], self._texts[self.answers.index(match[1].upper())]
        others = [self._next.match(rest)]
        if own and own in rest[: len(own) + 10]:
            rest = rest[rest.index(own) + len(own) :]
            beside = [self._next.match(rest), self._listed.match(rest)]
            others += [other for other in beside if other and not is_denied(rest[other.end() :])]
        else:
            others.append(self._listed.match(rest))
        others += [other for other in self._right.finditer(rest) if not is_denied(rest[other.end() :])]
        return any(other and other[1] != match[1].upper() for other in others) or self._lists_all(match[1], text)

    def _denied(self, match: re.Match[str], text: str) -> bool:
        return is_denied(text[match.end() :], self._texts[self.answers.index(match[1].upper())])

    def _by_text(self, said: str) -> str | None:
        words = normalise(said)
        same = [label for label, option in zip(self.answers, self._options, strict=True) if words and option == words]
        return same[0] if len(same) == 1 else None

    def _lists_all(self, label: str, text: str) -> bool:
        """Whether the options themselves are repeated, which begins with A and is no choice of A."""
        words = normalise(text)
        return label == "A" and all(option and option in words for option in self._options)


_CLOSED = re.compile(r"\s*$|[)\]}:>]|\.(?!\w\.)")
_CLOSED_CAPITAL = re.compile(r"[,;\"'”’]|\s*\n|\s+[-–—=]|\s+(?:is|would|should|must|because|since)\b")


def _closed(label: str, rest: str, option: str) -> bool:
    if _CLOSED.match(rest) or (label.isupper() and _CLOSED_CAPITAL.match(rest)):
        return True
    said = f"{normalise(rest[: 4 * len(option) + 100])} "
    return label.isupper() and option != "" and said.startswith(f"{option} ")
