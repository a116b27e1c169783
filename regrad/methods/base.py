"""What a method is: from a question and its passages to a prompt and a temporary weight update.

A method knows nothing of batches, servers or where atoms are kept; a generator knows nothing of methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regrad.corpus import Passage
from regrad.prompts import PromptFormat


@dataclass(frozen=True)
class Method:
    """One row of the table: does it retrieve, do the passages go into the prompt, are their gradients applied?"""

    name: str
    summary: str
    passages_in_prompt: bool
    applies_gradients: bool
    computes_gradients: bool = False  # now, instead of fetching them from a bank

    @property
    def retrieves(self) -> bool:
        """Whether the method looks at passages at all."""
        return self.passages_in_prompt or self.applies_gradients

    def prompt(self, prompts: PromptFormat, question: str, passages: Sequence[Passage]) -> str:
        """The generator's input. Passages go in worst first, so that the best stands next to the question."""
        return prompts.prompt(question, self.in_prompt(passages))

    def in_prompt(self, passages: Sequence[Passage]) -> list[Passage]:
        """The passages that go into the prompt, in order."""
        return list(reversed(passages)) if self.passages_in_prompt else []
