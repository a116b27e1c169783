"""An index that changes: the old version answers until the new one is open, and is closed after its last request."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from regrad.errors import RetrievalError
from regrad.retrieval.base import Retriever
from serve_app.evidence import IndexVersions
from tests.tools.patience import Deadline, patient


class Version(Retriever):
    """A version without an index; a newer one is there once it is published, and open once it may open."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.newer: Version | None = None
        self.error: Exception | None = None
        self.may_open = threading.Event()
        self.opening = threading.Event()
        self.retired = 0

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        return [[(f"version {self.number}", 1.0)] for _ in questions]

    def newest(self) -> Retriever:
        if self.error:
            raise self.error
        if self.newer is None:
            return self
        self.opening.set()
        assert self.may_open.wait(patient(30))
        return self.newer

    def retire(self) -> None:
        self.retired += 1

    def close(self) -> None:
        pass


@pytest.fixture
def first() -> Version:
    return Version()


@pytest.fixture
def index(first: Version) -> Iterator[IndexVersions]:
    versions = IndexVersions(first, 0.001)
    yield versions
    first.may_open.set()
    versions.close()


def searched(index: IndexVersions) -> Any:
    with index.pinned() as retriever:
        return retriever.number  # type: ignore[attr-defined]


def wait_until(done: Callable[[], bool]) -> None:
    deadline, pause = Deadline(10), threading.Event()
    while not done():
        assert not deadline.over
        pause.wait(0.001)


def test_the_older_version_answers_until_the_newer_one_is_open(first: Version, index: IndexVersions) -> None:
    first.newer = Version(2)
    assert first.opening.wait(patient(10))
    assert [searched(index) for _ in range(3)] == [1, 1, 1], "no request waits for the opening"
    assert first.retired == 0
    first.may_open.set()
    wait_until(lambda: searched(index) == 2)
    wait_until(lambda: first.retired == 1)


def test_a_request_keeps_its_version_and_the_last_one_closes_it(first: Version, index: IndexVersions) -> None:
    first.newer = Version(2)
    with index.pinned() as early:
        with index.pinned() as late:
            first.may_open.set()
            wait_until(lambda: searched(index) == 2)
            assert early is late is first
        assert first.retired == 0, "one request still has it"
    assert first.retired == 1
    assert first.newer.retired == 0


def test_a_store_that_does_not_answer_changes_nothing_and_is_asked_again(
    first: Version, index: IndexVersions, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (RetrievalError("gone", code="not_found"), RuntimeError("of some library")):
        with caplog.at_level(logging.WARNING, logger="serve_app"):
            caplog.clear()
            first.error = error
            wait_until(lambda: str(error) in caplog.text)  # noqa: B023
        assert searched(index) == 1
    first.error, first.newer = None, Version(2)
    first.may_open.set()
    wait_until(lambda: searched(index) == 2)
