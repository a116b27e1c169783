"""Every template, in one place: what a passage, a question with or without context, and an answer look like.

A passage is written by one template, `passage`, wherever it appears: in the prompt and in the string whose
gradient is its atom. (The paper's release takes gradients of two different strings in training and in the bank.)
"""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter

from pydantic import Field, field_validator

from regrad.corpus import Passage
from regrad.settings import Settings

_FIELDS: dict[str, set[str]] = {
    "passage": {"title", "text"},
    "atom": {"passage"},
    "context": {"passage", "index"},
    "question": {"question"},
    "answer": {"answer"},
}


class PromptFormat(Settings):
    """The templates of one model; every field is a `str.format` template with the fields named in its default."""

    passage: str = "{title}\n{text}"
    atom: str = "{passage}"
    context: str = "Passage {index}: {passage}\n"
    question: str = "Question: {question}\nAnswer:"
    answer: str = " {answer}"
    stop: str = Field("\n", min_length=1)

    @field_validator(*_FIELDS)
    @classmethod
    def _known_fields(cls, template: str, info: object) -> str:
        name = str(getattr(info, "field_name", ""))
        found = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
        if not found or not found <= _FIELDS[name]:
            raise ValueError(f"a template with the fields {sorted(_FIELDS[name])} is expected, found {sorted(found)}")
        return template

    def passage_text(self, passage: Passage) -> str:
        """The passage as one string, the same in a prompt and in an atom."""
        return self.passage.format(title=passage.title, text=passage.text).strip()

    def atom_text(self, passage: Passage) -> str:
        """The string whose language-model gradient is the passage's atom."""
        return self.atom.format(passage=self.passage_text(passage))

    def prompt(self, question: str, passages: Sequence[Passage] = ()) -> str:
        """The generator's input: the passages in the order given, then the question."""
        return self.context_text(passages) + self.question.format(question=question)

    def context_text(self, passages: Sequence[Passage]) -> str:
        """The passages as they stand in a prompt, in the order given."""
        return "".join(
            self.context.format(index=index, passage=self.passage_text(passage))
            for index, passage in enumerate(passages, start=1)
        )

    def conversation(self, turns: Sequence[tuple[str, str]]) -> str:
        """Earlier turns (role, content) as text: what a user said as a question, what was answered as an answer."""
        written = {"user": lambda text: self.question.format(question=text), "assistant": self._answered}
        return "".join(written.get(role, lambda text: f"{text}\n")(content) for role, content in turns)

    def _answered(self, text: str) -> str:
        return self.answer_text(text) + self.stop

    def answer_text(self, answer: str) -> str:
        """What training appends to a prompt."""
        return self.answer.format(answer=answer)
