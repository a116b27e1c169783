"""How the ReGrad release reads closed answers, so that its numbers can be given beside ours.

Source: `_predict` and `extract_pred` in the release's src/ICL.py, written anew. One fault of it is not repeated: it
looks into the prompt, too, so that the word "answer" before a letter in a question decides what is read.
"""

from __future__ import annotations

import re
import string

from regrad.data.questions import YES_NO, Question

_MARKER = "Answer:"
_DECIDED = "The final decision is:"
_ANSWER_IS = "he answer is"
_BOXED = re.compile(r"\{((?:[^{}]|\{[^{}]*\})*)\}|([^$]*)")
_TEXT_COMMAND = re.compile(r"\\text\{(.*?)\}")
_FIRST_CHARACTERS = 10
"""In which a lone letter after the marker counts."""
_UNITS = ("a", "c", "d")
"""Small letters that the release takes for units of measure, and removes, if a bracket or such stands beside them."""


def release_answer(question: Question, text: str) -> str | None:
    """The answer to a closed question by the release's rules: the first line after "Answer:", and in it

    the first allowed word, or the one after "The final decision is:" (which the release asks of PubMedQA only); the
    letter after the word "answer", else a lone capital among the first 10 characters, else a letter that is all that
    follows "he answer is" or stands in \\boxed{}.
    """
    line = text.strip(" \t\r").partition("\n")[0]  # the release stops decoding at a new line
    if question.kind == "yes-no":
        return _word(question.choices or YES_NO, line)
    return _letter(string.ascii_uppercase[: len(question.choices)], line)


def _word(words: tuple[str, ...], line: str) -> str | None:
    word = "|".join(re.escape(word.strip()) for word in sorted(words, key=len, reverse=True))
    decided = re.search(rf"{_DECIDED}\s*({word})\b", line, re.IGNORECASE)
    found = decided or re.search(rf"\b({word})\b", line.rpartition(_MARKER)[2], re.IGNORECASE)
    return found[1].lower() if found else None


def _letter(labels: str, line: str) -> str | None:
    line = line.replace("choice is", "answer is")
    # No boundary after the letter: "answer denied" is read as D. The case of "answer" counts.
    if found := re.search(rf"answer\s*[:\-]?\s*\(?([{labels}{labels.lower()}])", line):
        return found[1].upper()
    after = line.rpartition(_MARKER)[2]
    # The prompt ends with a blank, which the release counts among the ten.
    if found := re.search(rf"\b([{labels}])\b", f" {after.lstrip()}"[:_FIRST_CHARACTERS]):
        return found[1]
    if "boxed" in line:
        boxed = _BOXED.match(line.rpartition("boxed")[2])
        said = (boxed[1] or boxed[2] or "") if boxed else ""
    elif _ANSWER_IS in line:
        said = line.rpartition(_ANSWER_IS)[2]
    else:
        said = line.rpartition("Answer")[2]
    said = _TEXT_COMMAND.sub(r"\1", said.strip().removeprefix(":")).strip().rstrip("./")
    letter = said.strip(string.punctuation + string.whitespace)
    if letter in _UNITS and said != letter:
        return None
    return letter.upper() if len(letter) == 1 and letter.upper() in labels else None
