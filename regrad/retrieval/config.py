"""What can be set of an index and of searching it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from regrad.settings import Location, Settings

IndexField = Literal["contents", "title", "text"]


class IndexConfig(Settings):
    """`regrad index`: a Lucene BM25 index of a corpus."""

    corpus: Location
    output: Location
    fields: tuple[IndexField, ...] = Field(
        ("contents", "title"),
        description="what can be searched: contents (title and text as one), the title alone, the text alone",
    )
    threads: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _some_fields(self) -> Self:
        if "contents" not in self.fields:
            raise ValueError(f"fields: 'contents' must be among them, found {list(self.fields)}")
        return self


class RetrieverConfig(Settings):
    """BM25: its two parameters, and how much each field of the index counts.

    The defaults find the most on real questions (docs/benchmarks.md). The papers' search, Elasticsearch's `best_fields`
    over title and text, is `contents: 0, title: 1, text: 1, combine: best, tie: 0.5`.
    """

    k1: float = Field(1.2, ge=0)
    b: float = Field(0.75, ge=0, le=1)
    contents: float = Field(1.0, ge=0, description="weight of title and text as one field")
    title: float = Field(0.5, ge=0, description="weight of the title alone")
    text: float = Field(0.0, ge=0, description="weight of the text alone; the index must have this field")
    combine: Literal["sum", "best"] = Field("sum", description="a passage's score: of all fields, or of its best one")
    tie: float = Field(0.5, ge=0, le=1, description="with best: how much the other fields count beside it")

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not self.weights:
            raise ValueError("contents, title and text are all 0: nothing would be searched")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The fields that are searched, and how much each counts."""
        named = {"contents": self.contents, "title": self.title, "text": self.text}
        return {name: weight for name, weight in named.items() if weight > 0}
