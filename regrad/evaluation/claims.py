"""What is said of an answer beside it: "B is right" gives an answer, and "B is wrong" or "no evidence" gives none."""

from __future__ import annotations

import re

_NEGATIVE = r"(?:wrong|incorrect|false|untrue|unlikely|impossible|excluded|eliminated|less|least|never|neither)"
_VERB = (
    r"(?:is|was|are|were|would|seems|looks|can|cannot|cant|could|should|must|may|might|isnt|wasnt|wouldnt|doesnt|does)"
)
_BE = (
    rf"(?:(?:which|that|it|this|option|answer|choice) )?(?:{_VERB} )?(?:be )?"
    r"(?:(?:clearly|obviously|definitely|also) )?"
)
_DENIED = re.compile(rf"{_BE}(?:not(?! [a-z]\b)|cannot|cant|isnt|wasnt|wouldnt|doesnt|no$|{_NEGATIVE})\b")
_ASSERTED = re.compile(
    rf"{_VERB}\b(?:(?! (?:not|no|{_NEGATIVE})\b) \w+){{0,4}}? "
    r"(?:correct|right|true|best|answer|choice|option|likely|appropriate|indicated)\b"
)
_NAMED = re.compile(rf"{_VERB}\b")
_SUBJECT = re.compile(rf"[ \t]+{_VERB}\b", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    rf"\W+(?:but\s+)?(?:that|this|it)(?:['’]s|\s+(?:is|was))\s+(?:\w+ly\s+)?(?:not\s+(?:true|so|right|correct)|{_NEGATIVE})\b",
    re.IGNORECASE,
)

_CLAUSE = (
    "it he she they we i you his her its their this that these those there here the both neither only but as because "
    "since although not is"
)
_NO_CLAUSE = re.compile(rf"[ \t]+(?!(?:{'|'.join(_CLAUSE.split())})\b)\w|\.?[ \t]*\d", re.IGNORECASE)
_UNSURE_BEFORE = re.compile(
    r"(?:(?:\bnot\b|n['’]t\b|\bcannot\b|\bnever\b|\bdoubt\b|\bif\b|\bwhether\b|\bunless\b)"
    r"(?:(?!\b(?:so|thus|hence|therefore|and|but|because|then)\b)[^.,;:!?\n]){0,80}"
    r"|\b(?:wrong|incorrect|false|other)\s+)$",
    re.IGNORECASE,
)
_BEFORE, _AFTER = 100, 400


def is_denied(rest: str, option: str = "") -> bool:
    """Whether what follows an answer ("... is wrong") denies it, or says of it anything but that it is right.

    `option` is the option's own text, which may stand between.
    """
    said = _said_of(rest, option)
    return bool(_DENIED.match(said)) or (bool(_NAMED.match(said)) and not _ASSERTED.match(said))


def is_asserted(rest: str, option: str = "") -> bool:
    """Whether what follows an answer says that it is right: "... is the best choice"."""
    said = _said_of(rest, option)
    return bool(_ASSERTED.match(said)) and not _DENIED.match(said)


def _said_of(rest: str, option: str) -> str:
    said, own = _plain(rest[: _AFTER + len(option)]), _plain(option)
    if own and f"{said} ".startswith(f"{own} "):
        said = said[len(own) :].lstrip()
    return said


def is_denied_word(rest: str) -> bool:
    """The same of a word such as "no", with which a sentence may begin: "No, it is not wrong" denies nothing."""
    return _SUBJECT.match(rest) is not None and is_denied(rest)


def is_contradicted(word: str, rest: str) -> bool:
    """Whether a "yes" is taken back in the same breath: "Yes, that is incorrect". (A "no" is confirmed by it.)"""
    return word.lower() != "no" and _TAKEN_BACK.match(rest) is not None


def is_determiner(word: str, rest: str) -> bool:
    """Whether this "no" belongs to the word after it ("no evidence", "no one", "no 5") and so is no answer."""
    return word.lower() == "no" and _NO_CLAUSE.match(rest) is not None


def is_unsure(before: str) -> bool:
    """Whether the text before "the answer is" takes it back: "I don't think ...", "if ...", "the wrong ..."."""
    return _UNSURE_BEFORE.search(before[-_BEFORE:]) is not None


def _plain(text: str) -> str:
    """Words in lower case with single spaces; "isn't" is "isnt"."""
    return " ".join(re.findall(r"\w+", re.sub(r"['’]", "", text).lower()))
