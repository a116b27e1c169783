"""Every template, in one place: what a passage, a question with or without context, and an answer look like.

A passage is written by one template, `passage`, wherever it appears: in the prompt and in the string whose
gradient is its atom. (The paper's release takes gradients of two different strings in training and in the bank.)
Whether the model's end token follows it is one setting for atoms, answers and the sequences of LoRAs alike.

A prompt is a question, written by the template of its kind, combined with the passages as its style says. For a chat
model that text is the user's message: the model's own chat template is added where text becomes tokens
(`regrad.models.tokens`), so that nothing a user or a passage says can be taken for a part of the template.

Demonstrations, solved questions of the same kind, come first: each is the question as the template of its kind writes
it, without passages or style, and its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from string import Formatter
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator

from regrad.data.passages import Passage
from regrad.data.questions import YES_NO, Question, QuestionKind, label
from regrad.settings import Settings, invalid

StyleName = Literal["default", "pe"]

_FIELDS: dict[str, set[str]] = {
    "passage": {"title", "text"},
    "atom": {"passage"},
    "context": {"passage", "index"},
    "question": {"question"},
    "yes_no": {"question", "words"},
    "choice": {"question", "options", "labels"},
    "option": {"label", "text"},
    "answer": {"answer"},
    "demonstration": {"question", "start", "answer", "stop"},
    "demonstrated": {"demonstrations", "prompt"},
}
_NEEDED = {
    "yes_no": {"question"},
    "choice": {"question"},
    "option": {"text"},
    "demonstration": {"question", "answer"},
    "demonstrated": {"demonstrations", "prompt"},
}
_KIND_NAMES: dict[QuestionKind, str] = {"open": "open", "yes-no": "yes_no", "choice": "choice"}
_KINDS = tuple(_KIND_NAMES.values())


def _checked(template: str, allowed: set[str], needed: Set[str] = frozenset()) -> str:
    found = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    if not found or not needed <= found <= allowed:
        wanted = f", {' and '.join(map(repr, sorted(needed)))} among them," if needed else ""
        raise invalid(
            "wrong_fields", f"a template with the fields {sorted(allowed)}{wanted} is expected, found {sorted(found)}"
        )
    return template


class PromptStyle(Settings):
    """How passages and question are combined, by the question's kind, with passages and without (`_alone`).

    `{question}` is the question as its own template writes it, `{context}` all passages; `{words}` are the allowed
    words of a yes/no question, `{labels}` the letters of the options.
    """

    open: str = "{context}{question}"
    open_alone: str = "{question}"
    yes_no: str = "{context}{question}"
    yes_no_alone: str = "{question}"
    choice: str = "{context}{question}"
    choice_alone: str = "{question}"

    @field_validator(*_KINDS, *(f"{kind}_alone" for kind in _KINDS))
    @classmethod
    def _known_fields(cls, template: str, info: object) -> str:
        name = str(getattr(info, "field_name", ""))
        allowed = {"question"} | (set() if name.endswith("_alone") else {"context"})
        extra = {"yes_no": {"words"}, "choice": {"labels"}}.get(name.removesuffix("_alone"), set())
        return _checked(template, allowed | extra, {"question"})


_BRIEF = "The answer is a short phrase or a single word, never a sentence."
_WORDS = "The answer is one word: {words}."
_LETTER = "The answer is the letter of one option: {labels}."

# After the paper's PE-RAG prompt (appendix F): the passages set apart, what to do with them, and how to answer.
PROMPT_ENGINEERED = PromptStyle(
    open=f"### Passages\n{{context}}### End of the passages\nAnswer from the passages. {_BRIEF}\n{{question}}",
    open_alone=f"{_BRIEF}\n{{question}}",
    yes_no=f"### Passages\n{{context}}### End of the passages\nAnswer from the passages. {_WORDS}\n{{question}}",
    yes_no_alone=f"{_WORDS}\n{{question}}",
    choice=f"### Passages\n{{context}}### End of the passages\nAnswer from the passages. {_LETTER}\n{{question}}",
    choice_alone=f"{_LETTER}\n{{question}}",
)

TemplateArguments = Annotated[
    tuple[tuple[str, str | bool | int], ...],
    BeforeValidator(lambda value: tuple(value.items()) if isinstance(value, Mapping) else value),
]
"""Named values for a chat template; a mapping in a file."""


class PromptFormat(Settings):
    """The templates of one model; every field is a `str.format` template with the fields named in its default.

    Which text becomes an atom is decided by `passage` and `atom` alone.
    """

    passage: str = "{title}\n{text}"
    atom: str = "{passage}"
    context: str = "Passage {index}: {passage}\n"
    question: str = "Question: {question}\nAnswer:"
    yes_no: str = "Question: {question}\nAnswer with {words} only.\nAnswer:"
    choice: str = "Question: {question}\n{options}Answer with the letter only: {labels}.\nAnswer:"
    option: str = "{label}. {text}\n"
    order: Literal["best-last", "best-first"] = Field("best-last", description="order of the passages in a prompt")
    first_index: int = Field(1, ge=0, description="the `{index}` of the first passage in a prompt")
    answer: str = " {answer}"
    stop: str = Field("\n", min_length=1)
    end_token: bool = Field(
        True, description="end every passage and answer with the model's end token; the papers' releases do not"
    )
    demonstration: str = Field(
        "{question}{start}{answer}{stop}",
        description="a solved question; `start` is empty, or with chat a new line and `answer_start`",
    )
    demonstrated: str = Field("{demonstrations}{prompt}", description="a whole prompt after its demonstrations")
    default: PromptStyle = PromptStyle()
    pe: PromptStyle = PROMPT_ENGINEERED
    chat: bool | Literal["auto"] = Field(
        False, description="put the model's own chat template around every prompt; auto: if it has one"
    )
    system: str = Field("", description="with chat: the system message; empty: none")
    answer_start: str = Field("", description="with chat: how the model's turn begins, such as 'Answer:'")
    chat_arguments: TemplateArguments = Field(
        (("date_string", "26 Jul 2024"),),
        description="with chat: values for the template; some, such as Llama 3.2's, write today's date without one",
    )

    @field_validator(*_FIELDS)
    @classmethod
    def _known_fields(cls, template: str, info: object) -> str:
        name = str(getattr(info, "field_name", ""))
        return _checked(template, _FIELDS[name], _NEEDED.get(name, set()))

    def templates(self) -> list[str]:
        """Every template that the text of users and passages is inserted into."""
        styles = [value for style in (self.default, self.pe) for _, value in style]
        return [str(getattr(self, name)) for name in _FIELDS] + styles

    def passage_text(self, passage: Passage) -> str:
        """The passage as one string, the same in a prompt and in an atom."""
        return self.passage.format(title=passage.title, text=passage.text).strip()

    def atom_text(self, passage: Passage) -> str:
        """The string whose language-model gradient is the passage's atom."""
        return self.atom.format(passage=self.passage_text(passage))

    def prompt(self, question: str, passages: Sequence[Passage] = (), style: StyleName = "default") -> str:
        """The generator's input for an open question: the passages in the order given, then the question."""
        return self._put_together("open", self.question.format(question=question), passages, style, {})

    def prompt_for(
        self,
        question: Question,
        passages: Sequence[Passage] = (),
        style: StyleName = "default",
        demonstrations: Sequence[Question] = (),
    ) -> str:
        """The generator's input for a question of any kind, after the demonstrations if there are any."""
        kind, names = _KIND_NAMES[question.kind], self._names(question)
        prompt = self._put_together(kind, self.asked(question), passages, style, names)
        if not demonstrations:
            return prompt
        return self.demonstrated.format(demonstrations=self.demonstrations_text(demonstrations), prompt=prompt)

    def demonstrations_text(self, demonstrations: Sequence[Question]) -> str:
        """Solved questions as they are written in a prompt, in the order given."""
        start = f"\n{self.answer_start}" if self.chat and self.answer_start else ""
        return "".join(
            self.demonstration.format(
                question=self.asked(one), start=start, answer=self.answer_text(one.answers[0]), stop=self.stop
            )
            for one in demonstrations
        )

    def asked(self, question: Question) -> str:
        """The question as the template of its kind writes it."""
        if question.kind == "open":
            return self.question.format(question=question.question)
        names = self._names(question)
        if question.kind == "yes-no":
            return self.yes_no.format(question=question.question, **names)
        options = zip(_letters(question), question.choices, strict=True)
        written = "".join(self.option.format(label=letter, text=text) for letter, text in options)
        return self.choice.format(question=question.question, options=written, **names)

    def _names(self, question: Question) -> dict[str, str]:
        """What a closed question's templates call its words or letters."""
        if question.kind == "open":
            return {}
        if question.kind == "yes-no":
            return {"words": _either(question.choices or YES_NO)}
        return {"labels": _either(_letters(question))}

    def _put_together(
        self, kind: str, asked: str, passages: Sequence[Passage], style: StyleName, names: Mapping[str, str]
    ) -> str:
        found = self.pe if style == "pe" else self.default
        template: str = getattr(found, kind if passages else f"{kind}_alone")
        return template.format(context=self.context_text(passages), question=asked, **names)

    def context_text(self, passages: Sequence[Passage]) -> str:
        """The passages as they are written in a prompt, in the order given."""
        return "".join(
            self.context.format(index=index, passage=self.passage_text(passage))
            for index, passage in enumerate(passages, start=self.first_index)
        )

    def ordered(self, ranked: Sequence[Passage]) -> list[Passage]:
        """Passages that come best first, in the order in which they stand in a prompt."""
        return list(ranked) if self.order == "best-first" else list(ranked[::-1])

    def conversation(self, turns: Sequence[tuple[str, str]]) -> str:
        """Earlier turns (role, content) as text: a user's as questions, the assistant's as answers."""
        written = {"user": lambda text: self.question.format(question=text), "assistant": self._answered}
        return "".join(written.get(role, lambda text: f"{text}\n")(content) for role, content in turns)

    def _answered(self, text: str) -> str:
        return self.answer_text(text) + self.stop

    def answer_text(self, answer: str) -> str:
        """An answer behind its question, in one text."""
        return self.answer.format(answer=answer)

    def reply(self, answer: str) -> str:
        """What training appends to a prompt. With `chat` it begins the model's turn, where no space belongs."""
        text = self.answer_text(answer)
        return text.lstrip(" ") if self.chat and not self.answer_start else text


def _letters(question: Question) -> list[str]:
    return [label(number) for number in range(len(question.choices))]


def _either(words: Sequence[str]) -> str:
    """The words as in a sentence: yes, no or maybe."""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


T = TypeVar("T")


def with_most_passages(most: int, write: Callable[[int], T], fits: Callable[[T], bool]) -> tuple[int, T]:
    """What is written with as many passages as fit, and their number: the worst are left out first.

    `write` writes it with this number of the best, at most `most`; without any it may still not fit.
    """
    for kept in range(most, 0, -1):
        written = write(kept)
        if fits(written):
            return kept, written
    return 0, write(0)
