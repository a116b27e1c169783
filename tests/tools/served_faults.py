"""A server of several replicas in a process of its own, the load that is put on it, and what it must answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from safetensors.torch import load_file

from regrad.bank.format import Manifest
from regrad.data.passages import Passage
from regrad.meta_init import MetaInit
from serve_app.rollout import ReleaseConfig, ReleaseList
from tests.integration.conftest import environment, free_port
from tests.tools import served
from tests.tools.fork_server import family
from tests.tools.patience import Deadline, patient

Question = dict[str, Any]
APPLIED = ("regrad", "regrad+icl")
_COUNTED = {
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR": "0.02",
}
"""For autoscaling requests are counted, and told, every second instead of every six and ten."""


@dataclass
class Running:
    """The server: its address, its folder, and the questions with what they must give."""

    url: str
    folder: Path
    process: subprocess.Popen[str]
    questions: list[Question]
    application: str = "regrad"
    said: list[str] = field(default_factory=list)

    def post(self, body: Any, seconds: float | None = None, **options: Any) -> requests.Response:
        timeout = seconds or patient(60)
        return requests.post(f"{self.url}/v1/answer", json=body, timeout=timeout, **options)

    def answer(self, question: Question, **options: Any) -> dict[str, Any]:
        response = self.post({**question["body"], **options})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def asking(self, *methods: str) -> list[Question]:
        return [question for question in self.questions if question["body"]["method"] in methods]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas, by their titles."""
        title = f"ServeReplica:{self.application}:{deployment}"
        return [process for process in family(self.process.pid) if title in _title(process)]

    @contextmanager
    def beside(self, name: str, **changes: Any) -> Iterator[Running]:
        """Another application of the same server's, with other settings, in the block."""
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(json.loads((self.folder / "serve.json").read_text()) | changes))
        self._tell(name)
        try:
            yield replace(self, url=f"{self.url}/{name}", application=name)
        finally:
            path.unlink()
            self._tell(name)

    def running(self, deployment: str) -> int:
        """How many replicas of a deployment run, as Serve has it."""
        return int(self._tell("")[self.application][deployment])

    def _tell(self, line: str) -> dict[str, dict[str, int]]:
        """What the server's process answers to a line when it has done what that says."""

        def answers() -> list[str]:
            return [one for one in self.said if one.startswith(served.ANSWER)]

        assert self.process.stdin is not None
        before = len(answers())
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        self.wait(lambda: len(answers()) > before, seconds=120)
        found: dict[str, dict[str, int]] = json.loads(answers()[-1].removeprefix(served.ANSWER))
        return found

    def releases(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = requests.get(f"{self.url}/v1/bank", timeout=patient(30)).json()["releases"]
        return found

    def release(self, *releases: ReleaseConfig) -> None:
        """Make releases current, and wait until the server says so."""
        found = ReleaseList(releases=releases).model_dump(mode="json")
        temporary = self.folder / "releases.tmp"
        temporary.write_text(json.dumps(found))
        os.replace(temporary, self.folder / "releases.json")
        wanted = [(item.name, item.bank, item.share) for item in releases]
        self.wait(lambda: [(r["name"], r["bank"], r["share"]) for r in self.releases()] == wanted)

    def bank(self, uri: str, version: int = 1) -> Manifest:
        """A bank of its own with the versions up to `version`, or the next one on top of those before."""
        meta_init = MetaInit.load(self.folder / "meta-init")
        passages = [Passage(**item) for item in json.loads((self.folder / "passages.json").read_text())]
        return served.commit(uri, meta_init, passages, load_file(self.folder / "atoms.safetensors")["atoms"], version)

    def of(self, bank: str, **options: Any) -> ReleaseConfig:
        return ReleaseConfig(meta_init=str(self.folder / "meta-init"), bank=bank, **options)

    def wait(self, condition: Any, seconds: float = 60) -> None:
        deadline = Deadline(seconds)
        while not condition():
            assert self.process.poll() is None, "the server has ended"
            assert not deadline.over, "it did not happen"
            time.sleep(0.1)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def check(question: Question, answer: dict[str, Any]) -> None:
    """The answer is the one that this question gets alone, with the version that it states."""
    version = int((answer["bank_version"] or "1-").split("-")[0])
    assert answer["answer"] == question["answers"][str(version)], (question["body"], answer)
    assert [passage["id"] for passage in answer["passages"]] == question["passage_ids"]
    asks_bank = question["body"]["method"] in (*APPLIED, "regrad-online")
    assert (answer["bank_version"] is not None) == asks_bank or answer["degraded"]


@dataclass
class Load:
    """What came of questions that are asked without a pause from several threads."""

    threads: int
    answers: list[tuple[Question, dict[str, Any]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def check(self, failures: int = 0) -> None:
        for question, answer in self.answers:
            check(question, answer)
        assert len(self.failures) <= failures, self.failures
        assert self.answers


@contextmanager
def load(
    server: Running, questions: Sequence[Question], threads: int = 8, seconds: float | None = None, **options: Any
) -> Iterator[Load]:
    """Ask these questions, over and over, while the block runs; each may take `seconds`, the server's limit if None."""
    result, stop, lock = Load(threads), threading.Event(), threading.Lock()
    headers = {} if seconds is None else {"x-request-timeout": str(seconds)}

    def ask(first: int) -> None:
        number = first
        with requests.Session() as session:
            while not stop.is_set():
                question = questions[number % len(questions)]
                number += threads
                started = time.monotonic()
                try:
                    body = {**question["body"], **options}
                    response = session.post(f"{server.url}/v1/answer", json=body, headers=headers, timeout=patient(60))
                    problem = "" if response.status_code == 200 else f"{response.status_code} {response.text}"
                except requests.RequestException as error:
                    problem = repr(error)
                with lock:
                    result.slowest = max(result.slowest, time.monotonic() - started)
                    if problem:
                        result.failures.append(problem)
                    else:
                        result.answers.append((question, response.json()))

    workers = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield result
    finally:
        stop.set()
        for worker in workers:
            worker.join(patient(90))
    assert not any(worker.is_alive() for worker in workers), "a request hangs"


@contextmanager
def running(folder: Path, model: Path) -> Iterator[Running]:
    """The server, two replicas of each stage, and its questions."""
    served.prepare(folder, model)
    two = {"min_replicas": 2, "max_replicas": 2, "num_cpus": 0.1, "health_check_seconds": 1.0, "drain_seconds": 2.0}
    args = {
        name: str(folder / path) for name, path in {"meta_init": "meta-init", "bank": "bank", "index": "index"}.items()
    }
    config = {
        **args,
        "releases": str(folder / "releases.json"),
        "follow_seconds": 0.3,
        "tiers": {"memory_bytes": 0, "deadline_seconds": patient(20)},  # no test's answer may lack an atom by chance
        "limits": {"max_new_tokens": 200, "request_seconds": patient(60)},
        **dict.fromkeys(("retriever", "bank_loader", "generator"), two),
        "gateway": {"num_cpus": 0.1, "max_ongoing_requests": 512},
    }
    (folder / "serve.json").write_text(json.dumps(config))
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, served.__file__, str(folder), str(port)],
        env=environment(PYTHONPATH=str(Path(served.__file__).parents[2]), OMP_NUM_THREADS="1", **_COUNTED),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "stderr.txt").open("w"),
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stdin is not None
        while (line := process.stdout.readline()) != "serving\n":
            if not line:
                pytest.fail((folder / "stderr.txt").read_text()[-3000:], pytrace=False)
        questions = json.loads((folder / "expected.json").read_text())
        server = Running(f"http://127.0.0.1:{port}", folder, process, questions)
        threading.Thread(target=lambda: server.said.extend(process.stdout or ()), daemon=True).start()
        yield server
    finally:
        if process.stdin:
            process.stdin.close()
        try:
            process.wait(patient(30))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
