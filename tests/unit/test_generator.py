"""The generator's doors: several requests at once, one as it is written, and what is done without a bank loader."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.errors import PassageNotFound, PromptTooLong
from regrad.meta_init import MetaInit
from regrad.retrieval.base import Hit
from serve_app.config import ServeConfig
from serve_app.generator import GeneratorDeployment
from serve_app.messages import Answered, Ask, BankNeed, Piece, Release, Retrieved, RoutedAsk, Sampling

TOKENS = Sampling(4)


@pytest.fixture
def generator(tmp_path: Path, meta_init: MetaInit, recorded: Any) -> GeneratorDeployment:
    meta_init.save(tmp_path / "meta-init")
    places = {"meta_init": str(tmp_path / "meta-init"), "bank": "b", "index": "i"}
    return GeneratorDeployment(ServeConfig.model_validate(places))


@pytest.fixture
def release(tmp_path: Path, meta_init: MetaInit) -> Release:
    return Release("main", str(tmp_path / "meta-init"), "b", 1, meta_init.fingerprint)


def direct(release: Release, question: str) -> RoutedAsk:
    return RoutedAsk(Ask(question, "direct", sampling=TOKENS), release, False, BankNeed.NOTHING)


def regrad(release: Release) -> RoutedAsk:
    return RoutedAsk(Ask("Who?", "regrad", sampling=TOKENS), release, True, BankNeed.SUM)


def answers(generator: GeneratorDeployment, *given: Any) -> dict[int, Answered | Exception]:
    async def run() -> dict[int, Answered | Exception]:
        return {number: answer async for finished in generator.answer(*given) for number, answer in finished}

    return asyncio.run(run())


def test_each_of_several_requests_gets_its_own_answer_or_error(
    generator: GeneratorDeployment, release: Release
) -> None:
    routed = [direct(release, "Who?"), regrad(release), direct(release, "word " * 300)]
    found = answers(generator, routed, [None, PassageNotFound("no such passage"), None], [None, None, None])
    assert {number: type(answer) for number, answer in found.items()} == {
        0: Answered,
        1: PassageNotFound,
        2: PromptTooLong,
    }


def test_a_stream_ends_with_the_answer_of_a_whole_request(generator: GeneratorDeployment, release: Release) -> None:
    async def run() -> list[Piece | Answered]:
        return [event async for event in generator.stream([direct(release, "Who?")], None, None)]

    *pieces, last = asyncio.run(run())
    whole = answers(generator, [direct(release, "Who?")], None, None)[0]
    assert isinstance(last, Answered) and isinstance(whole, Answered)
    assert "".join(piece.text for piece in pieces if isinstance(piece, Piece)) == last.text == whole.text


def test_without_the_bank_loader_nothing_is_computed_and_the_answer_says_so(
    generator: GeneratorDeployment, release: Release, passages: list[Passage]
) -> None:
    found = Retrieved(tuple(Hit(passage, 1.0) for passage in passages[:2]), 1.0)
    (answer,) = answers(generator, [regrad(release)], [found], None).values()
    assert isinstance(answer, Answered)
    assert [use.tier for use in answer.uses] == [Tier.MISSING] * 2
    assert answer.bank_version is None
    (note,) = answer.degraded
    assert note.policy == "fewer" and "the bank loader is gone" in note.reason
