"""The engine on its thread: errors stay with their request, and the thread lives on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from regrad.errors import ModelError, PromptTooLong
from regrad.inference.engine import DecodingLoop, Engine
from regrad.inference.rows import DecodingRequest, Finished
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace
from tests.tools.answering import wait_until
from tests.tools.decoded import PROMPTS, alone, answered, update
from tests.tools.refusals import refused

REQUEST = DecodingRequest(PROMPTS[0], (), 8)


@pytest.fixture
def engine(tiny: LanguageModel) -> Engine:
    return Engine(tiny, max_rows=4)


@pytest.fixture
def loop(engine: Engine) -> Iterator[DecodingLoop]:
    loop = DecodingLoop(engine)
    yield loop
    loop.close()


def test_many_threads_ask_at_once(tiny: LanguageModel, loop: DecodingLoop) -> None:
    requests = [DecodingRequest(PROMPTS[i % 5], update(tiny, i), 6) for i in range(12)]
    answers: dict[int, Finished] = {}
    threads = [threading.Thread(target=lambda i=i: answers.update({i: answered(loop, requests[i])})) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[i].text for i in range(12)] == [alone(tiny, request) for request in requests]
    assert max(answer.largest_batch for answer in answers.values()) > 1


def test_a_wrong_request_gets_its_error_and_no_other(tiny: LanguageModel, loop: DecodingLoop) -> None:
    with pytest.raises(PromptTooLong):
        answered(loop, DecodingRequest("word " * 300))
    foreign = Subspace((("model.layers.7.mlp.up_proj", 32, 48),), 1, 1.0)
    with refused(ModelError, "not_linear", module="model.layers.7.mlp.up_proj", found=None):
        answered(loop, DecodingRequest("a", foreign.updates(torch.zeros(80))))
    assert answered(loop, REQUEST).text == alone(tiny, REQUEST)


def test_a_failing_pass_ends_its_requests_and_the_loop_goes_on(
    tiny: LanguageModel, engine: Engine, loop: DecodingLoop
) -> None:
    scores, failures = engine._scores, [RuntimeError("out of memory")]

    def failing(numbers: Any, pieces: Any) -> Any:
        if failures:
            raise failures.pop()
        return scores(numbers, pieces)

    engine._scores = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        answered(loop, REQUEST)
    assert answered(loop, REQUEST).text == alone(tiny, REQUEST)
    loop.check(60)


def test_a_listener_that_fails_harms_no_other_request(tiny: LanguageModel, loop: DecodingLoop) -> None:
    def broken(update: Any) -> None:
        raise RuntimeError("the event loop is closed")

    loop.submit(DecodingRequest(PROMPTS[0], (), 30, stop=()), broken)
    loop.submit(DecodingRequest("word " * 300), broken)
    assert answered(loop, REQUEST).text == alone(tiny, REQUEST)
    wait_until(lambda: loop.load == (0, 0))
    loop.check(60)


def test_other_work_runs_between_steps(tiny: LanguageModel, engine: Engine, loop: DecodingLoop) -> None:
    active, told = [], threading.Event()
    loop.submit(DecodingRequest(PROMPTS[0], (), 60, stop=()), lambda update: told.set())
    told.wait()
    before = threading.current_thread().name
    name = loop.run(lambda: (active.append(engine.active), threading.current_thread().name)[1]).result()
    assert (name, before != name, active) == ("decoding", True, [1])
    with pytest.raises(ZeroDivisionError):
        loop.run(lambda: 1 / 0).result()
    assert answered(loop, REQUEST).text == alone(tiny, REQUEST)


def test_a_cancelled_ticket_hears_nothing_more(engine: Engine, loop: DecodingLoop) -> None:
    heard: list[Any] = []
    first = threading.Event()
    ticket = loop.submit(DecodingRequest(PROMPTS[0], (), 150, stop=()), lambda u: (heard.append(u), first.set()))
    first.wait()
    ticket.cancel()
    wait_until(lambda: engine.active == 0)
    assert not any(isinstance(update, Finished) for update in heard)


def test_a_ticket_may_be_cancelled_before_the_loop_has_it(engine: Engine, loop: DecodingLoop) -> None:
    go = threading.Event()
    loop.run(go.wait)
    heard: list[Any] = []
    ticket = loop.submit(REQUEST, heard.append)
    ticket.cancel()
    go.set()
    loop.run(lambda: None).result()
    wait_until(lambda: loop.load == (0, 0))
    assert heard == []


def test_closing_ends_those_who_wait_with_an_error(tiny: LanguageModel) -> None:
    loop = DecodingLoop(Engine(tiny))
    heard: list[Any] = []
    loop.submit(DecodingRequest(PROMPTS[0], (), 200, stop=()), heard.append)
    loop.close()
    loop.submit(REQUEST, heard.append)
    assert [update.code for update in heard if isinstance(update, ModelError)] == ["model.decoding_ended"] * 2
    with refused(ModelError, "decoding_ended"):
        loop.run(lambda: None).result()
    with refused(ModelError, "thread_ended"):
        loop.check(60)
