"""What a method is: from a question and its passages to a prompt and a temporary weight update.

A method knows nothing of batches, servers or where atoms are kept; a generator knows nothing of methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from regrad.data.passages import Passage
from regrad.prompts import PromptFormat

Source = Literal["none", "static", "adapters", "gradients", "gradients-now", "adapting"]
"""Where the update comes from: nowhere, one LoRA for all questions, the passages' trained LoRAs, their gradients from a
bank or computed now, or training on the passages now."""


@dataclass(frozen=True)
class Method:
    """One row of the table: do the passages go into the prompt, and where does the weight update come from?

    `static` methods need a LoRA of `regrad finetune`; `served` ones are what a server offers.
    """

    name: str
    summary: str
    passages_in_prompt: bool
    update: Source = "none"
    static: bool = False
    served: bool = False
    style: Literal["default", "pe"] = "default"

    @property
    def applies_gradients(self) -> bool:
        """Whether the update is made of the passages' gradients at a MetaInit."""
        return self.update in ("gradients", "gradients-now")

    @property
    def computes_gradients(self) -> bool:
        """Now, instead of fetching them from a bank."""
        return self.update == "gradients-now"

    @property
    def updates_by_passage(self) -> bool:
        """Whether the update depends on the passages."""
        return self.update not in ("none", "static")

    @property
    def starts_at_random(self) -> bool:
        """Whether the update is trained now, from a LoRA whose A matrices a seed draws."""
        return self.update == "adapting"

    @property
    def retrieves(self) -> bool:
        """Whether the method looks at passages at all."""
        return self.passages_in_prompt or self.updates_by_passage

    def prompt(self, prompts: PromptFormat, question: str, passages: Sequence[Passage]) -> str:
        """The generator's input. Passages go in worst first, so that the best stands next to the question."""
        return prompts.prompt(question, self.in_prompt(passages))

    def in_prompt(self, passages: Sequence[Passage]) -> list[Passage]:
        """The passages that go into the prompt, in order."""
        return list(reversed(passages)) if self.passages_in_prompt else []


@dataclass(frozen=True)
class Asked:
    """A question with its passages, best first, and their retrieval scores where there are any."""

    question: str
    passages: tuple[Passage, ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Made:
    """The update of each question ([P] float32 on the CPU, or None for the base model), what was fetched, and notes.

    `bytes_fetched` is what the question's atoms take in the bank, wherever they were found. A note is empty if all went
    as the method says.
    """

    updates: list[Tensor | None]
    bytes_fetched: list[int]
    notes: list[str]


class Updates(Protocol):
    """A method bound to a model and its artefacts."""

    def __call__(self, asked: Sequence[Asked]) -> Made:
        """The updates of these questions, in order. May run the model: not beside anything else that does."""


class SameForAll:
    """No update, or one for all questions."""

    def __init__(self, update: Tensor | None = None) -> None:
        self._update = update

    def __call__(self, asked: Sequence[Asked]) -> Made:
        """See `Updates`."""
        return Made([self._update] * len(asked), [0] * len(asked), [""] * len(asked))
