"""Short requests in groups: who goes with whom, and what becomes of a group that fails."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.serve.exceptions import BackPressureError

from regrad.data.passages import Passage
from regrad.errors import PassageNotFound, PromptTooLong
from regrad.retrieval.base import Hit
from serve_app.config import GroupConfig
from serve_app.messages import Answered, Ask, GradientSum, PassageUse, Release, Retrieved, Sampling
from serve_app.microbatch import Groups

RELEASE = Release("main", "meta-init", "bank", 1, "f" * 16)


class Cancellable:
    """A stream that can be cancelled, as Serve's responses."""

    def __init__(self, events: AsyncGenerator[Any]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncGenerator[Any]:
        return self._events

    def cancel(self) -> None:
        pass


class Deployments:
    """Stands in for the three deployments, called in groups; requests that go alone are counted."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.alone: list[str] = []
        self.fails = False
        self.retriever = SimpleNamespace(many=SimpleNamespace(remote=self._search))
        self.loader = SimpleNamespace(many=SimpleNamespace(remote=self._load))
        streams = SimpleNamespace(many=SimpleNamespace(remote=lambda *asked: Cancellable(self._generate(*asked))))
        self.generator = SimpleNamespace(options=lambda stream: streams if stream else None)

    def _search(self, requests: list[Any]) -> asyncio.Task[list[Any]]:
        async def search() -> list[Any]:
            await asyncio.sleep(0.02)
            return [self._found(request) for request in requests]

        return asyncio.create_task(search())

    def _found(self, request: Any) -> Any:
        if request is None:
            return None
        if request.question == "nobody":
            return PassageNotFound("no such passage")
        return Retrieved((Hit(Passage(request.question, "", "text"), 1.0),), 1.0)

    def _load(self, found: asyncio.Task[list[Any]], requests: list[Any]) -> asyncio.Task[list[Any]]:
        async def load() -> list[Any]:
            sums = [GradientSum(torch.zeros(2), RELEASE.fingerprint, "1", (), 0.0) for _ in await found]
            return [total if request else None for total, request in zip(sums, requests, strict=True)]

        return asyncio.create_task(load())

    async def _generate(
        self, asks: list[Ask], found: Any, sums: Any, releases: list[Release]
    ) -> AsyncGenerator[list[tuple[int, Any]]]:
        self.groups.append([ask.question for ask in asks])
        retrieved = await found if found is not None else [None] * len(asks)
        totals = await sums if sums is not None else [None] * len(asks)
        for number in reversed(range(len(asks))):
            if self.fails and number == 0:
                raise RuntimeError("the replica died")
            yield [(number, self._answer(asks[number], retrieved[number], totals[number]))]

    def _answer(self, ask: Ask, found: Any, total: Any) -> Any:
        if isinstance(found, Exception):
            return found
        if ask.question == "long":
            return PromptTooLong("too long")
        return Answered(f"{ask.question} {total is not None}", "stop", 1, 1, None, "main")

    async def once(self, ask: Ask, release: Release, last: bool) -> tuple[Retrieved | None, Answered]:
        self.alone.append(ask.question)
        return None, Answered("alone", "stop", 1, 1, None, release.name)


def groups_of(deployments: Deployments, **settings: Any) -> Groups:
    handles: Any = (deployments.retriever, deployments.loader, deployments.generator)
    stages: Any = deployments
    return Groups(GroupConfig(**{"max_new_tokens": 64, "at_once": 1, **settings}), stages, handles)


def ask_all(deployments: Deployments, asks: list[Ask], **settings: Any) -> list[Any]:
    async def run() -> list[Any]:
        groups = groups_of(deployments, **settings)
        calls = [asyncio.create_task(groups.once(ask, RELEASE, False)) for ask in asks]
        await asyncio.sleep(0)
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(run())


def asks(*questions: str, method: str = "regrad") -> list[Ask]:
    return [Ask(question, method=method) for question in questions]


def test_the_first_leaves_at_once_and_the_others_gather() -> None:
    deployments = Deployments()
    found = ask_all(deployments, asks("a", "b", "c", "d"), max_size=2)
    assert [answered.text for _, answered in found] == ["a True", "b True", "c True", "d True"]
    assert [retrieved.hits[0].passage.id for retrieved, _ in found] == ["a", "b", "c", "d"]
    assert deployments.groups == [["a"], ["b", "c"], ["d"]]


def test_methods_travel_together_and_get_what_they_need() -> None:
    deployments = Deployments()
    first, *mixed = asks("z"), *[[Ask(m, method=m)] for m in ("direct", "rag", "regrad", "regrad-online")]
    found = ask_all(deployments, [*first, *(ask for each in mixed for ask in each)])
    assert [answered.text for _, answered in found[1:]] == [
        "direct False",
        "rag False",
        "regrad True",
        "regrad-online True",
    ]
    assert [retrieved is None for retrieved, _ in found[1:]] == [True, False, False, False]
    assert deployments.groups == [["z"], ["direct", "rag", "regrad", "regrad-online"]]


def test_an_error_is_its_own_requests_alone() -> None:
    found = ask_all(Deployments(), asks("a", "nobody", "long", "b"))
    assert isinstance(found[1], PassageNotFound)
    assert isinstance(found[2], PromptTooLong)
    assert [found[i][1].text for i in (0, 3)] == ["a True", "b True"]


def test_who_has_no_answer_when_a_group_fails_goes_alone() -> None:
    deployments = Deployments()
    deployments.fails = True
    found = ask_all(deployments, asks("a", "b", "c"))
    assert [answered.text for _, answered in found] == ["alone", "alone", "c True"]
    assert deployments.alone == ["a", "b"]


def test_a_full_server_refuses_the_whole_group_and_nobody_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    deployments = Deployments()

    def full(*asked: Any) -> Any:
        raise BackPressureError(num_queued_requests=1, max_queued_requests=1)

    monkeypatch.setattr(deployments.retriever.many, "remote", full)
    found = ask_all(deployments, asks("a", "b", "c"))
    assert [type(each) for each in found] == [BackPressureError] * 3
    assert deployments.alone == []


@pytest.mark.parametrize("limit", [0, 19])
def test_long_answers_go_alone(limit: int) -> None:
    deployments = Deployments()
    ask_all(deployments, asks("a"), max_new_tokens=limit)
    assert (deployments.alone, deployments.groups) == (["a"], [])
    ask_all(deployments, [Ask("b", sampling=Sampling(max_new_tokens=limit or 1))], max_new_tokens=limit)
    assert deployments.groups == ([["b"]] if limit else [])


def test_who_left_while_waiting_is_not_taken_along() -> None:
    deployments = Deployments()

    async def run() -> None:
        groups = groups_of(deployments)
        first, leaving, third = (asyncio.create_task(groups.once(ask, RELEASE, False)) for ask in asks("a", "b", "c"))
        await asyncio.sleep(0.005)
        leaving.cancel()
        await asyncio.gather(first, third)

    asyncio.run(run())
    assert deployments.groups == [["a"], ["c"]]


def test_a_sum_travels_in_bf16_and_arrives_as_it_left() -> None:
    values = torch.linspace(-3, 3, 7).to(torch.bfloat16)
    uses = (PassageUse("a", "memory"),)
    left = GradientSum(values, "f" * 16, "1-abc", uses, 2.5, torch.stack([values, -values]))
    arrived = copy.copy(left)  # by way of __reduce__, as a pickle is made
    assert arrived.total.dtype == torch.bfloat16
    assert torch.equal(arrived.total, values)
    assert arrived.parts is not None
    assert torch.equal(arrived.parts[1], -values)
    assert (arrived.fingerprint, arrived.bank_version, arrived.uses) == ("f" * 16, "1-abc", uses)
    assert arrived.total.data_ptr() != values.data_ptr()
    assert copy.copy(GradientSum(torch.zeros(0), "", "", (), 0.0)).parts is None
