"""Where a text says what its answer is: "the answer is ...", "I would choose ...", "\\boxed{...}"."""

from __future__ import annotations

import re

_SPACES = re.compile(r"\s+")
_DECORATION = str.maketrans("", "", "*`#")
_ANSWER_TAG = re.compile(r"<\s*(?:final[_ ])?answer\s*>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z_]{1,20}\s*>", re.IGNORECASE)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]{0,200})\}")
_NEXT_PROMPT = re.compile(r"\n\s*(?:question|passage|q)\b[^\n:]{0,10}:", re.IGNORECASE)

_VERB = r"(?:is|would\s+be|should\s+be|must\s+be|will\s+be|has\s+to\s+be)"
_NO_WORD_BETWEEN = (
    "not no never wrong incorrect false worst least other is isn was wasn would wouldn should must will may might "
    "could can cannot has"
)
_BETWEEN = rf"(?:\s+(?!(?:{'|'.join(_NO_WORD_BETWEEN.split())})\b)[\w-]+){{0,6}}?"
_HEDGES = (
    r"(?:\s+(?:definitely|clearly|certainly|obviously|simply|therefore|thus|indeed|actually|(?:most\s+)?likely"
    r"|(?:most\s+)?probably)\b)*"
)
SAYS = re.compile(
    rf"\b(?:answer|choice|option)\b[\"']?(?:{_BETWEEN}\s+{_VERB}\b{_HEDGES}\s*:?|\s*[:=])|\\boxed\s*\{{"
    r"|\bI(?:\s+would|\s+will|['’]d|['’]ll)?\s+(?:choose|pick|select|go\s+with|opt\s+for)\b",
    re.IGNORECASE,
)
"""Ends where the answer begins."""
_BEFORE = re.compile(
    r"(?:(?:so|thus|therefore|hence|overall|finally|ultimately|in\s+conclusion|i\s+(?:think|believe)(?:\s+that)?"
    r"|(?:based\s+on|according\s+to|given)\b[^,\n.]{1,80}(?=,))\b,?[ \t]+)+",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?:;]\s+|\n")
_MOST_SENTENCES = 200


def plain(text: str) -> str:
    """The text without markup around words, with single spaces and newlines, and without a next prompt after it."""
    text = _SPACES.sub(lambda match: "\n" if "\n" in match[0] else " ", text)
    text = _WRAPPED.sub(r"\1", _TAG.sub(" ", _ANSWER_TAG.sub(" answer: ", text)))
    return _NEXT_PROMPT.split(text.translate(_DECORATION).strip(), maxsplit=1)[0]


def begun(text: str) -> str:
    """The text from where it comes to the point: without "So", "Therefore,", "Based on the context,"."""
    match = _BEFORE.match(text)
    return text[match.end() :] if match else text


def sentences(text: str) -> list[str]:
    """Its sentences, each as `begun`."""
    return [begun(part.strip()) for part in _SENTENCE.split(text)[:_MOST_SENTENCES]]
