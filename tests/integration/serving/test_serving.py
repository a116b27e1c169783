"""The server under load and under faults: never a wrong answer, no hang, and what fails is at most what was at hand."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from regrad.bank.maintenance import delete
from regrad.storage import Storage
from serve_app.rollout import ReleaseList, updated
from tests.tools.patience import patient
from tests.tools.served_faults import APPLIED, Running, check, load, running


@pytest.fixture(scope="module")
def process(s3: str, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Started after the S3 server, whose address and keys it inherits."""
    with running(tmp_path_factory.mktemp("served"), tiny_path) as server:
        yield server


@pytest.fixture
def server(process: Running) -> Running:
    """The server with version 1 of its own bank current."""
    process.release(process.of(str(process.folder / "bank")))
    return process


def test_1000_interleaved_requests_give_what_each_gives_alone(server: Running) -> None:
    rng = random.Random(3)
    asked = [rng.choice(server.questions) for _ in range(1000)]
    with ThreadPoolExecutor(64) as threads:
        answers = list(threads.map(server.answer, asked))
    for question, answer in zip(asked, answers, strict=True):
        check(question, answer)
        assert answer["degraded"] == []
    assert max(answer["batch_size"] for answer in answers) > 4
    assert {question["body"]["method"] for question in asked} == {"direct", "rag", "regrad-online", *APPLIED}


@pytest.mark.parametrize("deployment", ["generator", "bank_loader", "retriever"])
def test_a_killed_replica_costs_no_answer_and_comes_back(server: Running, deployment: str) -> None:
    before = server.replicas(deployment)
    assert len(before) == 2
    with load(server, server.questions) as result:
        server.wait(lambda: len(result.answers) > 20)
        before[0].kill()
        killed = len(result.answers)
        server.wait(lambda: len(server.replicas(deployment)) == 2 and before[0] not in server.replicas(deployment))
        server.wait(lambda: len(result.answers) > killed + 40)
    result.check(failures=0)
    assert result.slowest < patient(30)


def test_a_killed_gateway_costs_no_answer_and_comes_back(server: Running) -> None:
    """The only one: until it is back Serve's own proxy holds the requests."""
    check_killed_gateway(server)


def check_killed_gateway(server: Running) -> None:
    """Kill a gateway that has requests in flight: another one, or the next, answers them."""
    long = {"question": "Who?", "method": "direct", "max_new_tokens": 200, "stop": []}
    probe = {"body": {"question": "Who?", "method": "direct", "max_new_tokens": 1}}
    before = server.replicas("gateway")
    with ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(server.post, long) for _ in range(16)]
        server.wait(lambda: server.answer(probe)["batch_size"] > 2)
        before[0].kill()
        in_flight = sum(not one.done() for one in asked)
        statuses = Counter(one.result().status_code for one in asked)
    assert in_flight > len(asked) / 2, "it was killed too late"
    assert statuses == {200: len(asked)}
    for question in server.questions[:8]:
        check(question, server.answer(question))
    server.wait(lambda: before[0] not in server.replicas("gateway") and server.running("gateway") == len(before))


def test_without_a_generator_it_is_alive_and_not_ready(server: Running) -> None:
    def status(path: str) -> int:
        return requests.get(f"{server.url}{path}", timeout=patient(30)).status_code

    server.wait(lambda: status("/readyz") == 200)
    for replica in server.replicas("generator"):
        replica.kill()
    server.wait(lambda: status("/readyz") == 503)
    assert status("/healthz") == 200
    late = server.post({"question": "Who?", "method": "direct"}, headers={"x-request-timeout": "0.2"})
    assert late.status_code in (503, 504), "who asks now is told, and does not wait"
    server.wait(lambda: status("/readyz") == 200, seconds=300)
    check(question := server.asking("regrad")[0], server.answer(question))


def test_a_flipped_byte_is_noticed_and_made_up_for(server: Running, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    shutil.copytree(server.folder / "bank", bank)
    for shard in (bank / "shards").iterdir():
        data = bytearray(shard.read_bytes())
        data[-100] ^= 1  # in the last record
        shard.write_bytes(data)
    server.release(server.of(str(bank)))
    reasons = []
    for question in server.asking(*APPLIED):
        answer = server.answer(question)
        check(question, answer)
        reasons += [(step["policy"], step["reason"]) for step in answer["degraded"]]
        online = {passage["id"] for passage in answer["passages"] if passage["tier"] == "online"}
        assert online == {name for step in answer["degraded"] for name in step["passage_ids"]}
    assert reasons
    assert all(policy == "online" and "are not what was written" in reason for policy, reason in reasons)


def test_a_missing_atom_is_computed_and_a_deleted_one_stays_away(server: Running, tmp_path: Path) -> None:
    question = next(q for q in server.asking("regrad") if len(q["passage_ids"]) == 3)
    bank, missing = tmp_path / "bank", question["passage_ids"][1]
    shutil.copytree(server.folder / "bank", bank)
    for shard in (bank / "shards").iterdir():
        shard.unlink()
    server.release(server.of(str(bank)))
    answer = server.answer(question)
    check(question, answer)
    assert {passage["tier"] for passage in answer["passages"]} == {"online"}
    assert [step["policy"] for step in answer["degraded"]] == ["online"]
    delete(str(bank), [missing])
    server.wait(lambda: server.answer(question)["degraded"][-1]["policy"] == "fewer")
    answer = server.answer(question)
    assert answer["degraded"][-1]["passage_ids"] == [missing]
    assert "it was deleted" in answer["degraded"][-1]["reason"]
    assert answer["answer"] != question["answers"]["1"]


def test_a_new_version_is_taken_up_without_dropping_a_request(server: Running, tmp_path: Path) -> None:
    bank = str(tmp_path / "bank")
    shutil.copytree(server.folder / "bank", bank)
    server.release(server.of(bank))
    with load(server, server.asking(*APPLIED)) as result:
        server.wait(lambda: len(result.answers) > 20)
        second = server.bank(bank, 2)
        server.wait(lambda: any(a["bank_version"] == second.label for _, a in result.answers))
        seen = len(result.answers)
        server.wait(lambda: len(result.answers) > seen + 30)
    result.check(failures=0)
    assert {answer["bank_version"] for _, answer in result.answers[-10:]} == {second.label}


def test_two_versions_share_the_traffic_and_one_is_taken_back(server: Running, tmp_path: Path) -> None:
    bank = str(tmp_path / "bank")
    shutil.copytree(server.folder / "bank", bank)
    server.bank(bank, 2)
    old = server.of(bank, bank_version=1)
    new = server.of(bank, bank_version=2, name="next", share=0.5)
    server.release(old)
    with load(server, server.asking(*APPLIED)) as result:
        server.wait(lambda: len(result.answers) > 10)
        server.release(*updated(ReleaseList(releases=(old,)), new).releases)
        both = len(result.answers)
        server.wait(lambda: len(result.answers) > both + 120)
        shared = [answer for _, answer in result.answers[both + 10 :]]
        server.release(old)
        back = len(result.answers)
        # A gateway that has not read the list yet still gives the other its share: 30 in a row are no chance.
        server.wait(lambda: len(result.answers) > back + 30 and releases(result.answers[-30:]) == {"main"})
        ended = len(result.answers)
        server.wait(lambda: len(result.answers) > ended + 30)
    result.check(failures=0)
    counts = Counter(answer["release"] for answer in shared)
    assert 0.3 < counts["next"] / len(shared) < 0.7
    assert all(answer["bank_version"][0] == {"main": "1", "next": "2"}[answer["release"]] for answer in shared)
    assert releases(result.answers[ended:]) == {"main"}


def releases(answers: list[tuple[Any, dict[str, Any]]]) -> set[str]:
    """The releases that gave these answers."""
    return {answer["release"] for _, answer in answers}


def test_a_wrong_list_of_releases_changes_nothing(server: Running) -> None:
    question = server.asking("regrad")[0]
    for text in ("{", '{"releases": []}', json.dumps({"releases": [{"meta_init": "/nowhere", "bank": "/nowhere"}]})):
        (server.folder / "releases.json").write_text(text)
        time.sleep(1.0)
        check(question, server.answer(question))
        assert server.releases()[0]["bank"] == str(server.folder / "bank")


def test_the_s3_server_is_cut_off_and_comes_back(
    server: Running, s3: str, restart_s3: Callable[[Callable[[], None]], None]
) -> None:
    bank = f"{s3}/served"
    server.bank(bank)
    server.release(server.of(bank))
    questions = server.asking(*APPLIED)
    for question in questions[:3]:
        answer = server.answer(question)
        check(question, answer)
        assert {passage["tier"] for passage in answer["passages"]} == {"store"}
    with load(server, questions, threads=4, seconds=patient(12)) as result:  # half of it for the atoms
        server.wait(lambda: len(result.answers) > 10)

        def without() -> None:
            before = len(result.answers)
            server.wait(lambda: sum(bool(a["degraded"]) for _, a in result.answers[before:]) >= 4)

        restart_s3(without)
        server.wait(lambda: not server.answer(questions[0])["degraded"])
    result.check(failures=0)
    assert result.slowest < patient(20)
    degraded = [step for _, answer in result.answers for step in answer["degraded"]]
    assert {step["policy"] for step in degraded} == {"online"}
    Storage(bank).remove()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows(server: Running, stream: bool) -> None:
    """Long before the answers that nobody waits for would have been written; a busy machine may try three times."""
    long = {"question": "Who?", "method": "direct", "max_new_tokens": 200, "stop": [], "stream": stream}
    probe = {"body": {"question": "Who?", "method": "direct", "max_new_tokens": 1}}
    count = 48 if stream else 144  # for seconds of work: it takes tenths until all who leave are noticed
    shares = []
    with ThreadPoolExecutor(count) as threads:
        while not shares or (min(shares) >= 0.5 and len(shares) < 3):
            started = time.monotonic()
            list(threads.map(lambda _: server.post(long).content, range(count)))
            whole = time.monotonic() - started
            list(threads.map(partial(_leave, server, long), [whole / 8] * count))
            left = time.monotonic()
            server.wait(lambda: all(server.answer(probe)["batch_size"] == 1 for _ in range(4)))
            shares.append((time.monotonic() - left) / whole)
    assert min(shares) < 0.5, shares


def _leave(server: Running, body: dict[str, Any], seconds: float) -> None:
    """Begin to read, then close the connection; of the first rows one may have its whole answer by then."""
    with suppress(requests.exceptions.ReadTimeout), server.post(body, seconds, stream=True) as response:
        next((line for line in response.iter_lines() if line.startswith(b"event: token")), None)


def test_what_takes_too_long_is_a_504(server: Running) -> None:
    long = {"question": "Who?", "method": "direct", "max_new_tokens": 200, "stop": []}
    response = server.post(long, headers={"x-request-timeout": "0.02"})
    assert (response.status_code, response.json()["error"]["type"]) == (504, "timeout")
    question = server.asking("regrad")[0]
    check(question, server.answer(question))


@pytest.fixture(scope="module")
def elastic(process: Running) -> Iterator[Running]:
    """Another application of that server: one or two generators, as its load needs, and two gateways that search and
    load themselves."""
    generator = {"max_replicas": 2, "num_cpus": 0.1, "target_ongoing_requests": 6.0, "drain_seconds": 5.0}
    generator |= {"upscale_delay_seconds": 1.0, "downscale_delay_seconds": 2.0}
    gateway = {"min_replicas": 2, "max_replicas": 2, "num_cpus": 0.1, "max_ongoing_requests": 512}
    with process.beside("elastic", embedded=True, generator=generator, gateway=gateway) as server:
        yield server


def test_it_scales_out_under_load_and_in_after_it(elastic: Running) -> None:
    """12 users, where 6 a generator are meant, and then one; Serve goes by the mean of its last 30 seconds."""
    assert elastic.running("generator") == 1
    with load(elastic, elastic.questions, threads=12) as result:
        elastic.wait(lambda: elastic.running("generator") == 2)
        grown = len(result.answers)
        elastic.wait(lambda: len(result.answers) > grown + 40)
    result.check(failures=0)
    with load(elastic, elastic.questions, threads=1) as after:
        elastic.wait(lambda: elastic.running("generator") == 1)
        back = len(after.answers)
        elastic.wait(lambda: len(after.answers) > back + 10)
    after.check(failures=0)


def test_one_of_two_gateways_is_killed_and_costs_no_answer(elastic: Running) -> None:
    check_killed_gateway(elastic)
