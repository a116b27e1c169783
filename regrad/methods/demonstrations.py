"""Which solved questions a question gets as its demonstrations: the first of a file, or the nearest of it.

Evaluation and server choose by the same lines. Nearness is BM25 over the words of the file's questions, searched as
passages are: by a Lucene index of them, in a temporary folder, so that there is one analyser and one formula.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Literal, Self

from pydantic import Field, model_validator

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import MethodError
from regrad.retrieval.base import Retriever, open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.config import Bm25SearchConfig, RetrieverConfig
from regrad.settings import Settings, invalid
from regrad.text import counted

_ALONE = RetrieverConfig(bm25=Bm25SearchConfig(title=0.0))
"""A question is one text, without a title."""


class DemonstrationSettings(Settings):
    """How many demonstrations a method has, and which: a part of every method's settings."""

    demonstrations: int = Field(0, ge=0, le=1000, description="number of solved questions shown before a question")
    which_demonstrations: Literal["first", "nearest"] = Field(
        "first",
        description="first: the first of the set's file, the same for every question; nearest: for each question those "
        "of the file that are most like it (BM25), never itself",
    )

    @model_validator(mode="after")
    def _some_to_choose(self) -> Self:
        if self.searches_demonstrations and not self.demonstrations:
            raise invalid("none_to_choose", "which_demonstrations chooses none; set `demonstrations` to their number")
        return self

    @property
    def searches_demonstrations(self) -> bool:
        """Whether each question gets its own."""
        return self.which_demonstrations == "nearest"

    @property
    def demonstrations_named(self) -> str:
        """How many and which, in words; empty for none."""
        return f"{self.demonstrations} {self.which_demonstrations}" if self.demonstrations else ""

    def check_demonstrations(self, chosen: Sequence[Question]) -> None:
        """Raise `MethodError` if the method can make nothing of these, which a question is to get."""


class DemonstrationPool:
    """The solved questions of a file, of which others get some. Safe to use from many threads.

    It is indexed if it is to be `searched`. As a context manager it closes itself.
    """

    def __init__(self, solved: Sequence[Question], searched: bool) -> None:
        self._solved = solved
        self._texts: list[str] = []
        self._index: Retriever | None = None
        if searched:
            self._texts = [one.normalised for one in solved]
            self._folder = TemporaryDirectory(prefix="regrad-demonstrations-")
            index = str(Path(self._folder.name) / "index")
            # Lucene gives equals in the order of their ids, as text: with these it is the pool's.
            passages = (Passage(f"{place:09d}", "", one.query) for place, one in enumerate(solved))
            build_index(passages, index, fields=("contents",))
            self._index = open_retriever(index, _ALONE)

    def chosen(self, settings: DemonstrationSettings, questions: Sequence[Question]) -> list[tuple[Question, ...]]:
        """The demonstrations of each question, as its method's settings say; raises as `nearest`."""
        if settings.searches_demonstrations:
            return self.nearest(questions, settings.demonstrations)
        return [tuple(self._solved[: settings.demonstrations])] * len(questions)

    def nearest(self, questions: Sequence[Question], count: int) -> list[tuple[Question, ...]]:
        """The `count` that are most like each question; the nearest is the last, next to the question in a prompt.

        Those that ask the same (`Question.normalised`) are left out. If fewer share a word with the question, the first
        others of the pool are taken, too. Raises `MethodError` for a question for which too few are left.
        """
        if self._index is None:
            raise ValueError("the pool was not opened to be searched")
        most = count + repeats(self._texts)  # so many may be left out
        ranked = self._index.search_ids([question.query for question in questions], most)
        found = []
        for question, hits in zip(questions, ranked, strict=True):
            itself, places = question.normalised, dict.fromkeys(int(name) for name, _ in hits)
            others = (place for place in range(len(self._solved)) if place not in places)
            kept = list(islice((n for n in chain(places, others) if self._texts[n] != itself), count))
            if len(kept) < count:
                raise MethodError(
                    f"{counted(count, 'demonstration')} are asked for, but of {len(self._solved)} solved questions "
                    f"{len(kept)} are another than the question {question.question!r:.80}; add some to their file, or "
                    "ask for fewer",
                    code="too_few_demonstrations",
                    question_id=question.id,
                    expected=count,
                    found=len(kept),
                )
            found.append(tuple(self._solved[place] for place in reversed(kept)))
        return found

    def close(self) -> None:
        """Release the index, and remove it."""
        if self._index is not None:
            self._index.close()
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def repeats(texts: Sequence[str]) -> int:
    """How often the text is there that is there most often."""
    return max(Counter(texts).values(), default=0)
