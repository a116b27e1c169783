"""The bank loader's readers: one is closed when another has taken its place, and not while it is used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regrad.bank.config import TiersConfig
from regrad.bank.reader import BankReader
from regrad.data.questions import Question
from regrad.errors import BankError, PassageNotFound
from regrad.meta_init import MetaInit
from regrad.methods.base import BankNeed, BankState
from regrad.retrieval.base import Retriever
from regrad.retrieval.hits import Hit
from serve_app import evidence as module
from serve_app.config import ServeConfig
from serve_app.evidence import BankLoaderDeployment, RetrieverDeployment
from serve_app.messages import Ask, GradientSum, Release, Retrieved, RoutedAsk, Turn
from tests.tools.banks import PASSAGES
from tests.tools.releasing import commit, setup

FOUND = Retrieved((Hit(PASSAGES[0], 1.0),), 0.0)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServeConfig:
    """Of a loader that looks for a new version at every request, and waits for it."""
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 60.0)
    tiers = TiersConfig(deadline_seconds=60.0)
    return setup(tmp_path).model_copy(update={"follow_seconds": 0.0, "tiers": tiers})


def release(config: ServeConfig, name: str = "main", version: int = 1) -> Release:
    fingerprint = MetaInit.load(config.meta_init).fingerprint
    return Release(name, config.meta_init, config.bank, version, fingerprint)


def load(loader: BankLoaderDeployment, release: Release) -> Awaitable[list[GradientSum | None]]:
    return loader.load([RoutedAsk(Ask("Who?"), release, True, BankNeed.SUM)], [FOUND])


def is_closed(reader: BankReader) -> bool:
    try:
        reader.was_deleted("p0")
    except BankError as error:
        return "was closed" in str(error)
    return False


def only(loader: BankLoaderDeployment) -> BankReader:
    [(reader, _)] = loader._open.values()
    return reader


def test_the_bank_of_a_release_in_force_is_open_before_the_first_request(
    config: ServeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = BankLoaderDeployment(config.model_copy(update={"follow_seconds": 3600.0}))
    monkeypatch.setattr(module, "BankReader", None)

    async def run() -> None:
        (found,) = await load(loader, release(config))
        assert found and found.bank is BankState.READ and not found.uses[0].missing

    asyncio.run(run())


@pytest.mark.parametrize("lost", ["lookup", "manifests"])
def test_a_loader_starts_without_a_bank_that_cannot_be_opened(
    config: ServeConfig, tmp_path: Path, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bank" / lost).rename(tmp_path / "lost")
    loader = BankLoaderDeployment(config)
    assert "cannot be opened before" in caplog.text

    async def run() -> None:
        (found,) = await load(loader, release(config))
        assert found and found.bank is BankState.UNREAD and found.uses[0].problem
        (tmp_path / "lost").rename(tmp_path / "bank" / lost)
        (found,) = await load(loader, release(config))
        assert found and found.bank is BankState.READ

    asyncio.run(run())


def test_a_reader_that_was_replaced_is_closed_when_nobody_uses_it(config: ServeConfig, tmp_path: Path) -> None:
    async def run() -> None:
        loader = BankLoaderDeployment(config)
        await load(loader, release(config))
        first = only(loader)
        with loader._used(first):
            commit(tmp_path / "bank", MetaInit.load(config.meta_init), seed=2)
            (found,) = await load(loader, release(config))
            assert found and found.bank is BankState.READ and not found.uses[0].missing
            second = only(loader)
            assert second is not first
            assert not is_closed(first), "a request reads from it"
        assert is_closed(first)
        await load(loader, release(config))
        assert only(loader) is second and not is_closed(second)
        assert not loader._users

    asyncio.run(run())


def test_the_reader_that_was_not_used_for_longest_is_closed(
    config: ServeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OPEN_BANKS", 1)
    commit(tmp_path / "bank", MetaInit.load(config.meta_init), seed=2)

    async def run() -> None:
        loader = BankLoaderDeployment(config)
        await load(loader, release(config, version=1))
        first = only(loader)
        await load(loader, release(config, version=2))
        assert is_closed(first) and not is_closed(only(loader))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("index_has", "pinned", "expected"),
    [
        (None, False, 2),
        (("bank", 1), False, 1),
        (("other", 1), False, 2),
        (("bank", 1), True, 2),
        (("bank", 9), False, 2),
    ],
    ids=["no bank", "its bank", "another bank", "an operator named one", "a version that is gone"],
)
def test_gradients_are_of_the_version_that_goes_with_what_was_found(
    config: ServeConfig, tmp_path: Path, index_has: tuple[str, int] | None, pinned: bool, expected: int
) -> None:
    commit(tmp_path / "bank", MetaInit.load(config.meta_init), seed=2)
    in_force = replace(release(config, version=2), pinned=pinned)
    found = replace(FOUND, bank=(str(tmp_path / index_has[0]), index_has[1]) if index_has else None)

    async def run() -> None:
        asked = RoutedAsk(Ask("Who?"), in_force, True, BankNeed.SUM)
        (summed,) = await BankLoaderDeployment(config).load([asked], [found])
        assert summed and summed.bank is BankState.READ
        assert str(summed.bank_version).startswith(f"{expected}-")

    asyncio.run(run())


def test_each_request_of_several_gets_what_it_needs(config: ServeConfig) -> None:
    needs = [BankNeed.NOTHING, BankNeed.DELETIONS, BankNeed.SUM, BankNeed.PARTS]
    routed = [RoutedAsk(Ask("Who?"), release(config), True, need) for need in needs]
    unknown = replace(release(config), bank=f"{config.bank}-that-is-not-there")
    routed += [RoutedAsk(Ask("Who?"), unknown, True, BankNeed.SUM), RoutedAsk(Ask("?"), unknown, True, BankNeed.SUM)]
    found = [FOUND] * 5 + [PassageNotFound("nothing")]
    nothing, deletions, total, parts, unread, failed = asyncio.run(BankLoaderDeployment(config).load(routed, found))
    assert nothing is None and failed is None
    assert deletions and total and parts and unread
    assert [each.bank for each in (deletions, total, parts, unread)] == [*[BankState.READ] * 3, BankState.UNREAD]
    assert [each.uses[0].missing for each in (deletions, total, parts, unread)] == [True, False, False, True]
    assert (total.parts is None, parts.parts is None) == (True, False)
    assert unread.uses[0].problem


class Searched(Retriever):
    """Gives one passage, and remembers what was searched for."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        raise NotImplementedError

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        self.queries += questions
        return [[Hit(PASSAGES[0], 1.0)] for _ in questions]

    def close(self) -> None:
        pass


def test_a_conversation_is_searched_for_as_in_an_evaluation(
    config: ServeConfig, monkeypatch: pytest.MonkeyPatch, recorded: Any
) -> None:
    searched = Searched()
    monkeypatch.setattr(module, "open_retriever", lambda *_: searched)
    retriever = RetrieverDeployment(config)
    said = (Turn("system", "Be brief."), Turn("user", "Who is Anna?"), Turn("assistant", "A painter."))
    ask = Ask("Where was she born?", turns=said)
    (found,) = retriever.retrieve([RoutedAsk(ask, release(config), True, BankNeed.NOTHING)])
    retriever.index.close()
    assert isinstance(found, Retrieved) and found.temperature is None
    evaluated = Question("", ask.question, (), turns=(("user", "Who is Anna?"), ("assistant", "A painter.")))
    assert searched.queries == [evaluated.query]
