"""Submitting jobs, against a server that answers as Ray's job server does (a real one: tests/integration/serving)."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import ray
from click.testing import CliRunner

from ray_jobs import cluster as cluster_module
from ray_jobs import submission as submission_module
from ray_jobs.submission import Jobs, Submission
from regrad.cli.submit import submit
from regrad.errors import ClusterError
from regrad.settings import read_yaml
from tests.tools.refusals import refused


@dataclass
class Server:
    """What the server knows; a test changes it."""

    version: str = ray.__version__
    status: int = 200
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    faster: bool = False
    drops: int = 0
    address: str = ""

    def put(self, name: str, status: str, message: str = "") -> None:
        job = {"type": "SUBMISSION", "submission_id": name, "status": status, "entrypoint": "x", "message": message}
        self.jobs[name] = job | {"start_time": len(self.jobs) + 1}

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if self.status != 200:
            return self.status, "Unauthorized: missing authentication token"
        if path == "/api/version":
            return 200, {"version": "4", "ray_version": self.version, "ray_commit": "x"}
        if path.startswith("/api/packages/"):
            return (200 if body else 404), {}
        if path == "/api/jobs/" and body:
            return self._submit(json.loads(body))
        if path == "/api/jobs/":
            return 200, list(self.jobs.values())
        name, _, what = path.removeprefix("/api/jobs/").partition("/")
        if name not in self.jobs:
            return 404, f"Job {name} does not exist"
        if what == "stop":
            self.jobs[name]["status"] = "STOPPED"
        return 200, {"": self.jobs[name], "stop": {"stopped": True}, "logs": {"logs": "some\nerror: no room [x.y]\n"}}[
            what
        ]

    def _submit(self, request: dict[str, Any]) -> tuple[int, Any]:
        name = request["submission_id"]
        if self.faster:
            self.put(name, "RUNNING")
        if name in self.jobs:
            return 500, f"ValueError: Job with submission_id {name} already exists. Please use another."
        self.submitted.append(request)
        self.put(name, "PENDING")
        return 200, {"job_id": name, "submission_id": name}


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, content = state.answer(self.path, body)
            if self.command == "POST" and state.drops:
                state.drops -= 1
                return  # the connection is closed without an answer
            text = content if isinstance(content, str) else json.dumps(content)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = _reply

        def log_message(self, format: str, *args: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{running.server_port}"
    try:
        yield state
    finally:
        running.shutdown()
        running.server_close()


@pytest.fixture
def submission(tmp_path: Path) -> Submission:
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs/index.yaml"
    config.write_text("corpus: s3://b/corpus.jsonl\noutput: s3://b/index\n")
    files: list[str | Path] = []
    content = read_yaml(config, files=files)
    return Submission("index", "ray_jobs.index_corpus", files, ("k=2",), content, tmp_path)


def test_a_job_is_its_command_line_in_a_copy_of_the_working_directory(server: Server, submission: Submission) -> None:
    job, new = Jobs(server.address).submit(replace(submission, environment={"HF_HOME": "/models"}))
    (request,) = server.submitted
    assert new and job.submission_id == submission.name
    assert request["entrypoint"] == "python -m ray_jobs.index_corpus --config configs/index.yaml --set k=2"
    assert request["runtime_env"]["working_dir"].startswith("gcs://")  # uploaded
    assert request["runtime_env"]["env_vars"]["HF_HOME"] == "/models"


def test_the_name_is_made_of_the_whole_configuration(submission: Submission) -> None:
    other = replace(submission, content={**submission.content, "output": "s3://b/other"})
    assert submission.name == replace(submission).name != other.name
    assert submission.name != replace(submission, module="ray_jobs.build_bank").name


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "SUCCEEDED"])
def test_a_job_that_is_there_is_found_and_not_run_twice(server: Server, submission: Submission, status: str) -> None:
    server.put(submission.name, status)
    job, new = Jobs(server.address).submit(submission)
    assert not new and job.submission_id == submission.name and not server.submitted


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_job_that_did_not_succeed_is_submitted_under_the_next_name(
    server: Server, submission: Submission, status: str
) -> None:
    server.put(submission.name, status)
    server.put(f"{submission.name}-2", status)
    server.put(f"{submission.name}-extra-7", "RUNNING")
    job, new = Jobs(server.address).submit(submission)
    assert new and job.submission_id == f"{submission.name}-3"


def test_one_that_succeeded_runs_again_only_if_asked_to(server: Server, submission: Submission) -> None:
    server.put(submission.name, "SUCCEEDED")
    job, new = Jobs(server.address).submit(submission, again=True)
    assert new and job.submission_id == f"{submission.name}-2"


def test_of_two_who_submit_at_once_the_slower_finds_the_job(server: Server, submission: Submission) -> None:
    server.faster = True
    job, new = Jobs(server.address).submit(submission)
    assert not new and job.submission_id == submission.name and not server.submitted


def test_an_answer_that_was_lost_submits_nothing_twice(
    server: Server, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission_module, "_PAUSES", (0.0, 0.0))
    server.drops = 2
    job, _ = Jobs(server.address).submit(submission)
    assert job.submission_id == submission.name and len(server.submitted) == 1
    server.drops = 3
    with refused(ClusterError, "no_dashboard"):
        Jobs(server.address).stop(submission.name)


def test_a_log_goes_on_where_the_connection_was_lost(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission_module, "_PAUSES", (0.0,))
    server.put("regrad-index-1", "SUCCEEDED")
    lost = [True]

    async def tail(self: Any, name: str) -> AsyncIterator[str]:
        yield "first\n"
        if lost.pop() if lost else False:
            raise ConnectionError("lost")
        yield "second\n"

    monkeypatch.setattr(submission_module.JobSubmissionClient, "tail_job_logs", tail)
    said: list[str] = []
    Jobs(server.address).follow("regrad-index-1", said.append)
    assert "".join(said) == "first\nsecond\n"


def test_a_configuration_that_the_cluster_would_not_have_is_refused(submission: Submission, tmp_path: Path) -> None:
    submission.check()
    with refused(ClusterError, "config_not_shipped"):
        replace(submission, excludes=["configs"]).check()
    with refused(ClusterError, "config_not_shipped"):
        replace(submission, working_dir=tmp_path / "configs/elsewhere").check()
    (tmp_path / ".gitignore").write_text("*.yaml\n")
    with refused(ClusterError, "config_not_shipped", path=str(submission.files[0])):
        submission.check()


def test_a_configuration_in_an_object_store_is_read_there_by_the_cluster_too(
    server: Server, submission: Submission, tmp_path: Path
) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/bucket/index.yaml", b"corpus: s3://b/c.jsonl\noutput: s3://b/index\n")
    given = ["--config", "memory://bucket/index.yaml", "--working-dir", str(tmp_path), "--address", server.address]
    shown = CliRunner().invoke(submit, ["index", *given, "--detach"], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    (request,) = server.submitted
    assert request["entrypoint"] == "python -m ray_jobs.index_corpus --config memory://bucket/index.yaml"


def test_a_file_that_the_configuration_includes_has_to_get_there_too(submission: Submission, tmp_path: Path) -> None:
    (tmp_path / "configs/model.yaml").write_text("path: x\n")
    config = tmp_path / "configs/train.yaml"
    config.write_text("model: model.yaml\n")
    files: list[str | Path] = []
    content = read_yaml(config, files=files)
    assert [Path(file).name for file in files] == ["train.yaml", "model.yaml"]
    with refused(ClusterError, "config_not_shipped", path=str(files[1])):
        replace(submission, files=files, content=content, excludes=["model.yaml"]).check()


@pytest.mark.parametrize(
    "content",
    [{"output": "runs/x"}, {"bank": {"uri": "runs/x"}}, {"output": "s3://b/x", "checkpoints": {"location": "runs/x"}}],
)
def test_a_result_in_the_jobs_own_copy_is_refused(submission: Submission, content: dict[str, Any]) -> None:
    with refused(ClusterError, "result_lost", found="runs/x"):
        replace(submission, content=content).check()


def test_where_nothing_answers_is_said_at_once(server: Server) -> None:
    with refused(ClusterError, "no_dashboard"):
        Jobs("http://127.0.0.1:1")
    with refused(ClusterError, "bad_address"):
        Jobs("127.0.0.1:8265")


def test_another_version_of_ray_is_refused(server: Server) -> None:
    server.version = "2.9.0"
    with refused(ClusterError, "version_skew", expected=ray.__version__, found="2.9.0"):
        Jobs(server.address)


def test_a_cluster_that_asks_for_a_token_says_so(server: Server) -> None:
    server.status = 401
    with refused(ClusterError, "unauthorized"):
        Jobs(server.address)


def test_an_unknown_job_is_named(server: Server) -> None:
    jobs = Jobs(server.address)
    for ask in (jobs.job, jobs.stop, jobs.logs):
        with refused(ClusterError, "job_not_found", job="regrad-x"):
            ask("regrad-x")


def test_a_job_is_stopped_and_those_of_others_are_not_listed(server: Server) -> None:
    server.put("regrad-index-1", "RUNNING")
    server.put("raysubmit_x", "RUNNING")
    jobs = Jobs(server.address)
    assert jobs.stop("regrad-index-1").status.value == "STOPPED"
    assert [job.submission_id for job in jobs.all()] == ["regrad-index-1"]


def test_a_job_that_failed_ends_with_its_own_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Jobs, *_: Any) -> None:
        pass

    monkeypatch.setattr(Jobs, "_tail", nothing)
    server.put("regrad-index-1", "FAILED", "Job entrypoint command failed with exit code 2")
    with refused(ClusterError, "job_failed", reason="no room [x.y]"):
        Jobs(server.address).follow("regrad-index-1", print)


def test_a_job_of_another_version_of_regrad_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cluster_module.SUBMITTED_BY, "0.0.1")
    with refused(ClusterError, "version_skew", expected="0.0.1"):
        cluster_module._check_version()
    monkeypatch.delenv(cluster_module.SUBMITTED_BY)
    cluster_module._check_version()
