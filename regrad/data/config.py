"""Question sets: where their files are, how they are read, and which questions are taken."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regrad.data.questions import QuestionKind
from regrad.settings import Location, Settings

_HOTPOTQA_RULES = ("hotpotqa", "2wikimultihopqa")


class QuestionSetConfig(Settings):
    """A question set: one file in one of the formats of `regrad.data.question_sets.READERS`."""

    name: str = Field(min_length=1, description="the set's name in tables and records")
    path: Location = Field(description="a file, plain or compressed (gz, bz2, xz, zip)")
    format: str = Field("jsonl", description="the name of a reader, such as hotpotqa")
    first: int | None = Field(None, ge=1, description="only the first so many of the file, or all if it has fewer")
    sample: int | None = Field(None, ge=1, description="so many of these, drawn by id, whatever the order")
    seed: int = Field(0, description="of the sample")
    sha256: str | None = Field(
        None,
        pattern="^([0-9a-f]{64}|any)$",
        description="of the file as it is stored; null: the published one (of the unpacked file), if the file bears a "
        "published file's name, compressed or not",
    )
    kind: QuestionKind | None = Field(None, description="ask these questions as such; else as the format says")
    rules: Literal["squad", "hotpotqa"] | None = Field(
        None,
        description="how open answers are scored: with hotpotqa, yes, no and noanswer get no partial credit; null: "
        "hotpotqa for hotpotqa and 2wikimultihopqa, whose own scripts do so, else squad",
    )
    cut: bool = Field(
        False,
        description="open answers: up to '.', ',' or a new line, after 'the answer is' if it is there, as PRAG does",
    )
    aliases: Location | None = Field(None, description="2WikiMultihopQA's id_aliases.json, where the set comes with it")

    @property
    def scoring_rules(self) -> Literal["squad", "hotpotqa"]:
        """The rules for open answers."""
        return self.rules or ("hotpotqa" if self.format in _HOTPOTQA_RULES else "squad")
