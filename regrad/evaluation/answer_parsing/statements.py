"""What a text says: its sentences without decoration, what it asserts, denies, doubts and takes back."""

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
    r"\b(?:answer|choice|option|decision|conclusion|verdict|response|pick)\b[\"']?"
    rf"(?:{_BETWEEN}\s+{_VERB}\b{_HEDGES}\s*:?|\s*[:=])"
    rf"|\bholding\s+{_VERB}\b{_HEDGES}\s*:?|\bfinal\s*:|\\boxed\s*\{{"
    # "X ∈ A": prompts that name the answer X ("the final answer is X, where X ∈ {A, B}") are answered in these words.
    r"|\bX(?:\s*[∈=:]|\s+(?:in|is)\b)"
    r"|\bI(?:\s+would|\s+will|['’]d|['’]ll)?(?:\s+have\s+to)?"
    r"\s+(?:choose|pick|select|say|answer|go\s+with|opt\s+for)\b",
    re.IGNORECASE,
)
"""Ends where the answer begins."""
IT_IS = rf"(?:(?:it|that|this)(?:['’]s|\s+{_VERB}){_HEDGES}\s+)"
"""A pattern of "It is", "That would be" and the like, before an answer."""
_BEFORE = re.compile(
    r"(?:(?:so|thus|therefore|hence|overall|finally|ultimately|well|sorry|unfortunately|i\s+(?:think|believe)(?:\s+that)?"
    r"|in\s+(?:conclusion|summary|short)|of\s+course|(?:no|without)\s+(?:a\s+)?doubt"
    r"|(?:most\s+)?(?:definitely|certainly|absolutely|clearly|obviously|undoubtedly|surely|indeed|probably|likely)"
    r"|(?:based\s+on|according\s+to|given|in|under|for|from|by|as|at|on)\b"
    r"(?:(?!\b(?:yes|no|not|if)\b)[^,\n.]){1,80}(?=,))\b,?[ \t]+)+"
    r"(?!(?-i:a)\s*$)",  # "As the court held, a": cut off, and no label
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


_NEGATIVE = r"(?:wrong|incorrect|false|untrue|unlikely|impossible|excluded|eliminated|less|least|never|neither)"
_CLAIM_VERB = (
    r"(?:is|was|are|were|would|seems|looks|can|cannot|cant|could|should|must|may|might|isnt|wasnt|wouldnt|doesnt|does)"
)
_BE = (
    rf"(?:(?:which|that|it|this|option|answer|choice) )?(?:{_CLAIM_VERB} )?(?:be )?"
    r"(?:(?:clearly|obviously|definitely|also) )?"
)
_DENIED = re.compile(rf"{_BE}(?:not(?! [a-z]\b)|cannot|cant|isnt|wasnt|wouldnt|doesnt|no$|{_NEGATIVE})\b")
_ASSERTED = re.compile(
    rf"{_CLAIM_VERB}\b(?:(?! (?:not|no|{_NEGATIVE})\b) \w+){{0,4}}? "
    r"(?:correct|right|true|best|answer|choice|option|holding|likely|appropriate|indicated|supported|accurate"
    r"|the one)\b"
)
_NAMED = re.compile(rf"{_CLAIM_VERB}\b")
_SUBJECT = re.compile(rf"[ \t]+{_CLAIM_VERB}\b", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    rf"\W+(?:but\s+)?(?:that|this|it)(?:['’]s|\s+(?:is|was))\s+(?:\w+ly\s+)?(?:not\s+(?:true|so|right|correct)|{_NEGATIVE})\b",
    re.IGNORECASE,
)

_CLAUSE = (
    "it he she they we i you his her its their this that these those there here the both neither only but as because "
    "since although not is in under at for from on by with without when where while after before during so which "
    "definitely absolutely certainly unfortunately sorry"
)
_NO_CLAUSE = re.compile(
    rf"[ \t]+(?!(?:{'|'.join(_CLAUSE.split())})(?![\w-])|way\s*(?:[.,;!]|$))\w|\.?[ \t]*\d", re.IGNORECASE
)
_UNSURE_BEFORE = re.compile(
    r"(?:(?:\bnot\b|n['’]t\b|\bcannot\b|\bnever\b|\bdoubt\b|\bif\b|\bwhether\b|\bunless\b)"
    r"(?:(?!\b(?:so|thus|hence|therefore|and|but|because|then)\b)[^.,;:!?\n]){0,80}"
    r"|\b(?:wrong|incorrect|false|other)\s+)$",
    re.IGNORECASE,
)
_BEFORE_CLAIM, _AFTER = 100, 400


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
    return _UNSURE_BEFORE.search(before[-_BEFORE_CLAIM:]) is not None


def _plain(text: str) -> str:
    """Words in lower case with single spaces; "isn't" is "isnt"."""
    return " ".join(re.findall(r"\w+", re.sub(r"['’]", "", text).lower()))
