"""A question's way through the deployments: who goes with whom, and which release answers."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.errors import PassageNotFound, PromptTooLong, RetrievalError
from regrad.methods.base import BankState, PassageUse
from regrad.retrieval.hits import Hit
from serve_app import router as module
from serve_app.config import ServeConfig
from serve_app.embedded import Embedded
from serve_app.http.errors import UnknownRelease
from serve_app.messages import (
    Answered,
    Ask,
    BankNeed,
    GradientSum,
    Piece,
    Release,
    Reply,
    Retrieved,
    RoutedAsk,
    Sampling,
    StreamEvent,
)
from serve_app.router import Router, release_for
from tests.tools.refusals import refused

RELEASE = Release("main", "meta-init", "bank", 1, "f" * 16)
LONG = Sampling(max_new_tokens=65)


class Response:
    """What a call gives, as Serve does: it can be awaited (also more than once) or iterated, and cancelled."""

    def __init__(self, work: Any, cancelled: list[str], name: str) -> None:
        self._work, self._cancelled, self._name = work, cancelled, name

    def __await__(self) -> Any:
        return self._work.__await__()

    def __aiter__(self) -> Any:
        return self._work

    def cancel(self) -> None:
        self._cancelled.append(self._name)


class Deployments:
    """Stands in for the three deployments, and remembers which questions each call was for.

    The retriever, loader or generator dies (`deaths`) as often as is said; `fails_late`: the generator after an answer.
    `embedded`: retriever and loader are not replicas, but objects of this process.
    """

    def __init__(self, embedded: bool = False, **deaths: int) -> None:
        self.embedded, self.deaths, self.fails_late, self.seconds = embedded, deaths, False, 0.0
        self.calls: dict[str, list[list[str]]] = {"retrieve": [], "load": [], "answer": [], "stream": []}
        self.cancelled: list[str] = []
        self.full = False

    def _call(self, name: str, work: Callable[..., Any]) -> Any:
        def remote(routed: Sequence[RoutedAsk], *given: Any) -> Response:
            if self.full:
                raise BackPressureError(num_queued_requests=1, max_queued_requests=1)
            self.calls[name].append([each.ask.question for each in routed])
            dies = self.deaths.get(name, 0) > 0
            self.deaths[name] = self.deaths.get(name, 0) - 1
            made = work(routed, dies, *given)
            return Response(made if name in ("answer", "stream") else asyncio.ensure_future(made), self.cancelled, name)

        return SimpleNamespace(remote=remote)

    def router(self, **groups: Any) -> Router:
        config = ServeConfig.model_validate(
            {
                **{"meta_init": "m", "bank": "b", "index": "i", "limits": {"max_in_flight": 8}},
                "groups": {"max_new_tokens": 64, "at_once": 1, **groups},
            }
        )
        streams = SimpleNamespace(answer=self._call("answer", self._answer), stream=self._call("stream", self._stream))
        follower: Any = SimpleNamespace(releases=[RELEASE])
        if self.embedded:
            objects: Any = SimpleNamespace(retrieve=self._retrieve_here, load=self._load_here, open=None)
            return Router(config, follower, *Embedded(objects, objects).handles(streams))
        retriever = SimpleNamespace(retrieve=self._call("retrieve", self._retrieve))
        loader = SimpleNamespace(load=self._call("load", self._load))
        return Router(config, follower, retriever, loader, streams)

    def _retrieve_here(self, routed: Sequence[RoutedAsk]) -> list[Any]:
        """Blocks, as a search does: it is called in a thread."""
        self.calls["retrieve"].append([each.ask.question for each in routed])
        if self.deaths.get("retrieve", 0) > 0:
            raise RetrievalError("no such index")
        return [self._found(each) for each in routed]

    async def _load_here(self, routed: Sequence[RoutedAsk], found: Sequence[Any]) -> list[GradientSum | None]:
        self.calls["load"].append([each.ask.question for each in routed])
        assert len(found) == len(routed), "it is given what was found"
        return self._sums(routed)

    async def _retrieve(self, routed: Sequence[RoutedAsk], dies: bool) -> list[Any]:
        await asyncio.sleep(0.02)
        if dies:
            raise RayActorError
        return [self._found(each) for each in routed]

    def _found(self, each: RoutedAsk) -> Retrieved | Exception | None:
        if not each.retrieves:
            return None
        if each.ask.question == "nobody":
            return PassageNotFound("no such passage")
        return Retrieved((Hit(Passage(each.ask.question, "", "text"), 1.0),), 1.0)

    async def _load(self, routed: Sequence[RoutedAsk], dies: bool, found: Awaitable[Any]) -> list[GradientSum | None]:
        await found
        if dies:
            raise RayActorError
        return self._sums(routed)

    def _sums(self, routed: Sequence[RoutedAsk]) -> list[GradientSum | None]:
        total = GradientSum(torch.zeros(2), RELEASE.fingerprint, "1", (), 0.0)
        return [None if each.bank is BankNeed.NOTHING else total for each in routed]

    async def _answer(
        self, routed: Sequence[RoutedAsk], dies: bool, found: Any, sums: Any
    ) -> AsyncGenerator[list[tuple[int, Any]]]:
        if not self.embedded:  # Serve resolves what is handed on un-awaited
            found, sums = [each if each is None else await each for each in (found, sums)]
        retrieved = [None] * len(routed) if found is None else found
        totals = [None] * len(routed) if sums is None else sums
        await asyncio.sleep(self.seconds)
        if dies:
            raise RayActorError
        for number in reversed(range(len(routed))):
            if self.fails_late and number == 0 and len(routed) > 1:
                raise RuntimeError("the replica died")
            yield [(number, self._answered(routed[number].ask, retrieved[number], totals[number]))]

    def _answered(self, ask: Ask, found: Any, total: Any) -> Any:
        if isinstance(found, Exception):
            return found
        if ask.question == "too long":
            return PromptTooLong("too long")
        return Answered(f"{ask.question} {total is not None}", "stop", 1, 1, None, "main")

    async def _stream(
        self, routed: Sequence[RoutedAsk], dies: bool, found: Any, sums: Any
    ) -> AsyncGenerator[Piece | Answered]:
        async for [(_, answered)] in self._answer(routed, dies and not self.fails_late, found, sums):
            yield Piece(answered.text)
            if dies:
                raise RayActorError
            yield answered


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.0)


def ask_all(deployments: Deployments, asks: list[Ask], **groups: Any) -> list[Any]:
    async def run() -> list[Any]:
        router = deployments.router(**groups)
        calls = [asyncio.create_task(router.answer(ask)) for ask in asks]
        await asyncio.sleep(0)
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(run())


def read(deployments: Deployments, ask: Ask) -> list[StreamEvent]:
    async def run() -> list[StreamEvent]:
        return [event async for event in deployments.router().stream(ask)]

    return asyncio.run(run())


def texts(replies: list[Any]) -> list[str]:
    return [reply.answered.text for reply in replies]


def asks(*questions: str, method: str = "regrad") -> list[Ask]:
    return [Ask(question, method=method) for question in questions]


BOTH = pytest.mark.parametrize("embedded", [False, True], ids=["replicas", "embedded"])


@BOTH
def test_the_first_leaves_at_once_and_the_others_gather(embedded: bool) -> None:
    deployments = Deployments(embedded)
    found = ask_all(deployments, asks("a", "b", "c", "d"), max_size=2)
    assert texts(found) == ["a True", "b True", "c True", "d True"]
    assert [reply.retrieved.hits[0].passage.id for reply in found] == ["a", "b", "c", "d"]
    assert all(reply.total_milliseconds > 0 for reply in found)
    assert deployments.calls["answer"] == [["a"], ["b", "c"], ["d"]]


@BOTH
def test_methods_travel_together_and_get_what_they_need(embedded: bool) -> None:
    deployments = Deployments(embedded)
    methods = ["direct", "rag", "regrad", "regrad-online"]
    found = ask_all(deployments, asks("z") + [Ask(method, method=method) for method in methods])
    assert texts(found[1:]) == ["direct False", "rag False", "regrad True", "regrad-online True"]
    assert [reply.retrieved is None for reply in found[1:]] == [True, False, False, False]
    assert deployments.calls["answer"] == [["z"], methods]


@BOTH
@pytest.mark.parametrize("sampling", [Sampling(), LONG], ids=["micro-batch", "alone"])
def test_only_the_deployments_that_a_method_needs_are_asked(sampling: Sampling, embedded: bool) -> None:
    asked = {}
    for method in ("direct", "rag", "regrad"):
        deployments = Deployments(embedded)
        ask_all(deployments, [Ask("a", method=method, sampling=sampling)])
        asked[method] = [name for name, calls in deployments.calls.items() if calls]
    assert asked == {
        "direct": ["answer"],
        "rag": ["retrieve", "answer"],
        "regrad": ["retrieve", "load", "answer"],
    }


@BOTH
def test_an_error_is_its_own_requests_alone(embedded: bool) -> None:
    found = ask_all(Deployments(embedded), asks("a", "nobody", "too long", "b"))
    assert isinstance(found[1], PassageNotFound)
    assert isinstance(found[2], PromptTooLong)
    assert texts([found[0], found[3]]) == ["a True", "b True"]


@pytest.mark.parametrize(("question", "error"), [("nobody", PassageNotFound), ("too long", PromptTooLong)])
def test_an_error_of_a_request_that_goes_alone_is_raised_and_not_tried_again(question: str, error: Any) -> None:
    deployments = Deployments()
    (found,) = ask_all(deployments, [Ask(question, sampling=LONG)])
    assert isinstance(found, error)
    assert len(deployments.calls["answer"]) == 1


def test_who_has_no_answer_when_a_group_fails_goes_alone() -> None:
    deployments = Deployments()
    deployments.fails_late = True
    found = ask_all(deployments, asks("z", "a", "b", "c"))
    assert texts(found) == ["z True", "a True", "b True", "c True"]
    assert deployments.calls["answer"] == [["z"], ["a", "b", "c"], ["a"]]


def test_full_deployments_refuse_a_whole_group_and_nobody_goes_alone() -> None:
    deployments = Deployments()
    deployments.full = True
    found = ask_all(deployments, asks("a", "b", "c"))
    assert [type(each) for each in found] == [BackPressureError] * 3
    assert deployments.calls["answer"] == []


def test_a_full_router_refuses_what_it_has_no_room_for() -> None:
    found = ask_all(Deployments(), asks(*"abcdefghij"))
    assert [type(each) for each in found] == [Reply] * 8 + [BackPressureError] * 2


@pytest.mark.parametrize("limit", [0, 19])
def test_long_answers_go_alone(limit: int) -> None:
    deployments = Deployments()
    ask_all(deployments, asks("a", "b", "c"), max_new_tokens=limit)
    assert deployments.calls["answer"] == [["a"], ["b"], ["c"]]


def test_who_left_while_waiting_is_not_taken_along() -> None:
    deployments = Deployments()

    async def run() -> None:
        router = deployments.router()
        first, leaving, third = (asyncio.create_task(router.answer(ask)) for ask in asks("a", "b", "c"))
        await asyncio.sleep(0.005)
        leaving.cancel()
        await asyncio.gather(first, third)

    asyncio.run(run())
    assert deployments.calls["answer"] == [["a"], ["c"]]


def releases(**shares: float) -> list[Release]:
    return [replace(RELEASE, name=name, share=share) for name, share in shares.items()]


def test_shares_are_kept_and_a_request_stays_with_its_release() -> None:
    listed = releases(main=0.8, next=0.2)
    asked = [Ask("q", request_id=str(number)) for number in range(2000)]
    chosen = [release_for(ask, listed).name for ask in asked]
    assert 0.16 < chosen.count("next") / 2000 < 0.24
    assert [release_for(ask, listed).name for ask in asked] == chosen


def test_a_release_may_be_asked_for_by_name() -> None:
    listed = releases(main=1.0, hidden=0.0)
    assert {release_for(Ask("q", request_id=str(i)), listed).name for i in range(50)} == {"main"}
    assert release_for(Ask("q", release="hidden"), listed).name == "hidden"
    with refused(UnknownRelease, name="none", known=["main", "hidden"]):
        release_for(Ask("q", release="none"), listed)


def test_a_sum_travels_in_bf16_and_arrives_as_it_left() -> None:
    values = torch.linspace(-3, 3, 7).to(torch.bfloat16)
    uses = (PassageUse("a", Tier.MEMORY),)
    left = GradientSum(values, "f" * 16, "1-abc", uses, 2.5, torch.stack([values, -values]))
    arrived = copy.copy(left)  # by way of __reduce__, as a pickle is made
    assert arrived.total.dtype == torch.bfloat16
    assert torch.equal(arrived.total, values)
    assert arrived.parts is not None
    assert torch.equal(arrived.parts[1], -values)
    assert (arrived.fingerprint, arrived.bank_version, arrived.uses) == ("f" * 16, "1-abc", uses)
    assert arrived.total.data_ptr() != values.data_ptr()


def test_a_sum_of_a_bank_that_was_not_read_says_so() -> None:
    found = Retrieved((Hit(Passage("a", "", "text"), 1.0),), 1.0)
    arrived = copy.copy(GradientSum.unread(found, RELEASE, "it is gone"))
    assert (arrived.bank, arrived.bank_version, arrived.parts) == (BankState.UNREAD, None, None)
    assert arrived.uses == (PassageUse("a", Tier.MISSING, "it is gone"),)
