"""What a model wrote, as a question and an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from regrad.prompts import PromptFormat

_QUESTION = r"(?:^|\n)[\s*#>-]*(?:\d+[.)]\s*)?\**(?:Question|Q)\s*\d*\s*\**:\**"
_ANSWER = r"(?:^|\n|(?<=[?.!]))[\s*#>-]*(?:Answer|A)\s*\d*\s*\**:\**"


@dataclass(frozen=True)
class Pair:
    """A question and its answer."""

    question: str
    answer: str


class PairParser:
    """Reads `question, answer marker, answer, stop`, the markers being those of the model's own question template.

    Models that were not trained on that template write their own: `Q:`, `**Answer:**`, a number before the question,
    a sentence before the pair. Those are understood, too, in any case; a pair in another language or form needs a
    question template that names its markers.
    """

    def __init__(self, prompts: PromptFormat) -> None:
        before, _, after = prompts.question.partition("{question}")
        self._question = _marker(_QUESTION, before)
        self._answer = _marker(_ANSWER, after)
        self._stop = prompts.stop

    def finished(self, text: str) -> bool:
        """Whether the text holds a whole answer, up to the stop string."""
        found = self._answer.search(text)
        return found is not None and self._stop in text[found.end() :].lstrip()

    def parse(self, text: str) -> Pair | None:
        """The first pair, or None if there is no answer or no question of one line."""
        found = self._answer.search(text)
        if found is None:
            return None
        question = self._question.split(text[: found.start()])[-1].strip().strip("*").strip()
        answer = text[found.end() :].lstrip().split(self._stop)[0].strip().strip("*").strip()
        return Pair(question, answer) if question and answer and "\n" not in question else None


def _marker(general: str, template: str) -> re.Pattern[str]:
    own = re.escape(template.strip())
    return re.compile(rf"{own}|{general}" if own else general, re.IGNORECASE)
