"""Jobs on a cluster that runs already: what `ray job submit` does, so that the same job twice is one job.

A job's name is made of what it does: its verb and its whole configuration. Whoever submits it again, also from another
machine, finds it. A job that failed or was stopped is submitted again under the next name (`-2`, `-3`), as jobs resume.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from ray_jobs._ray_compat.core import is_shipped
from ray_jobs.cluster import SUBMITTED_BY
from regrad.errors import ClusterError
from regrad.text import first_line, in_one_line

T = TypeVar("T")
for _name in ("dashboard_sdk", "job.sdk"):  # they tell of every upload and connection, between the lines of a job
    logging.getLogger(f"ray.dashboard.modules.{_name}").setLevel(logging.WARNING)

_CONNECT_SECONDS = 10.0
_PAUSES = (0.5, 2.0, 5.0)  # seconds before a lost connection is tried again
_LOOK_SECONDS = 0.5
_PREFIX = "regrad"
DONE = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED})


@dataclass(frozen=True)
class Submission:
    """A job as it goes to a cluster.

    `content` is its configuration with everything that it includes and overrides; `files` are those that it was read
    from, the one of `--config` first, and text where it is a URI, which the cluster reads itself. `working_dir` is
    copied to the cluster without what `excludes` and `.gitignore` name.
    """

    verb: str
    module: str
    files: Sequence[str | Path]
    overrides: Sequence[str]
    content: Mapping[str, Any]
    working_dir: Path
    excludes: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`regrad-VERB-` and 12 hex digits of the configuration's SHA-256."""
        text = json.dumps([self.module, self.content], sort_keys=True, default=str)
        return f"{_PREFIX}-{self.verb}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def entrypoint(self) -> str:
        """The command line that the cluster runs, in its copy of the working directory."""
        config = self.files[0]
        if isinstance(config, Path):
            config = config.resolve().relative_to(self.working_dir.resolve()).as_posix()
        changes = [part for change in self.overrides for part in ("--set", change)]
        return shlex.join(["python", "-m", self.module, "--config", config, *changes])

    @property
    def runtime_env(self) -> dict[str, Any]:
        """What Ray prepares for the job."""
        return {
            "working_dir": str(self.working_dir.resolve()),
            "excludes": list(self.excludes),
            "env_vars": {**self.environment, SUBMITTED_BY: version("regrad")},
        }

    def check(self) -> None:
        """Raise `ClusterError` for a file that the cluster would not have, or a result that would be lost there."""
        folder = self.working_dir.resolve()
        for file in self.files:
            if isinstance(file, str):
                continue  # a URI
            path = file.resolve()
            if not path.is_relative_to(folder) or not is_shipped(path, folder, list(self.excludes)):
                raise ClusterError(
                    f"{file} would not exist on the cluster: the job gets {folder}, without what .gitignore and "
                    "--exclude name; put the file there, or give another --working-dir",
                    code="config_not_shipped",
                    path=str(file),
                    working_dir=str(folder),
                )
        for key, place in _results(self.content):
            if isinstance(place, str) and "://" not in place and not place.startswith("/"):
                raise ClusterError(
                    f"{key} is {place}, in the job's copy of the working directory, which is deleted with it; give a "
                    f"URI, or a path that all machines see: --set {key}=s3://bucket/{place}",
                    code="result_lost",
                    key=key,
                    found=place,
                )


def _results(content: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """The keys, wherever they are in a configuration, that say where a job writes, and what they say."""
    inner = enumerate(content) if isinstance(content, list | tuple) else ()
    for part, value in content.items() if isinstance(content, Mapping) else inner:
        key = f"{at}.{part}" if at else str(part)
        if part == "output" or key.endswith(("bank.uri", "checkpoints.location")):
            yield key, value
        else:
            yield from _results(value, key)


class Jobs:
    """The jobs of one cluster. Every call raises `ClusterError` if the cluster does not answer or refuses."""

    def __init__(self, address: str) -> None:
        self.address = address
        logging.getLogger("ray.dashboard").setLevel(logging.WARNING)  # a line for every package that it uploads
        _check_reachable(address)
        self._client = self._ask(lambda: JobSubmissionClient(address))
        answer = self._ask(lambda: requests.get(f"{address.rstrip('/')}/api/version", timeout=_CONNECT_SECONDS))
        found = str(answer.json().get("ray_version", "")) if answer.ok else ray.__version__  # a token guards it
        if found.split(".")[:2] != ray.__version__.split(".")[:2]:
            raise ClusterError(
                f"the cluster at {address} runs Ray {found}, and this is Ray {ray.__version__}; install the same "
                "version here and there (constraints.txt)",
                code="version_skew",
                expected=ray.__version__,
                found=found,
            )

    def submit(self, submission: Submission, again: bool = False) -> tuple[JobDetails, bool]:
        """The job, and whether it is new: one that waits, runs or has succeeded is found (unless `again`)."""
        submission.check()
        last = self._last_attempt(submission.name)
        if last is not None and (last.status not in DONE or (last.status == JobStatus.SUCCEEDED and not again)):
            return last, False
        name = _next_name(submission.name, last)
        try:
            self._ask(
                lambda: self._client.submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=name,
                    runtime_env=submission.runtime_env,
                    metadata={"job": submission.verb, "configuration": json.dumps(submission.content, default=str)},
                )
            )
        except ClusterError as error:
            if "already exists" not in str(error.fields.get("reason")):
                raise
            return self.job(name), False  # somebody was faster, or this very call whose answer was lost
        return self.job(name), True

    def job(self, name: str) -> JobDetails:
        """What the cluster says of a job; raises `ClusterError` if it knows none of this name."""
        return self._ask(lambda: self._client.get_job_info(name), name)

    def all(self) -> list[JobDetails]:
        """Jobs that regrad submitted, the newest last."""
        jobs = self._ask(self._client.list_jobs)
        ours = [job for job in jobs if (job.submission_id or "").startswith(f"{_PREFIX}-")]
        return sorted(ours, key=lambda job: job.start_time or 0)

    def stop(self, name: str) -> JobDetails:
        """Stop a job and wait until it has ended; one that has ended before stays as it is."""
        self._ask(lambda: self._client.stop_job(name), name)
        return self._ended(name)

    def logs(self, name: str) -> str:
        """What a job has printed so far."""
        return str(self._ask(lambda: self._client.get_job_logs(name), name))

    def follow(self, name: str, say: Callable[[str], None]) -> JobDetails:
        """Pass on what a job prints, from its beginning until it ends. Raises `ClusterError` if it did not succeed."""
        self.job(name)
        said = 0

        def pass_on(text: str) -> None:
            nonlocal said
            said += len(text)
            say(text)

        def follow_on() -> None:  # a connection that was lost begins again at the beginning of the log
            asyncio.run(self._tail(name, said, pass_on))

        while True:
            before = said
            try:
                self._ask(follow_on, name)
                break
            except ClusterError as error:
                # Hours of a log may lose a connection often: only where nothing comes any more it is given up.
                if error.code != "cluster.no_dashboard" or said == before:
                    raise
        job = self._ended(name)
        if job.status != JobStatus.SUCCEEDED:
            reason = _reason(job, self.logs(name))
            stopped = job.status == JobStatus.STOPPED
            text = f"job {name} was stopped" if stopped else f"job {name} failed: {reason}"
            raise ClusterError(text, code="job_failed", job=name, status=str(job.status.value), reason=reason)
        return job

    async def _tail(self, name: str, skip: int, say: Callable[[str], None]) -> None:
        try:
            async for text in self._client.tail_job_logs(name):
                known = min(skip, len(text))
                skip -= known
                say(text[known:])
        except RuntimeError as error:  # what Ray makes of a lost connection
            raise ConnectionError(str(error)) from error

    def _ended(self, name: str) -> JobDetails:
        while (job := self.job(name)).status not in DONE:
            time.sleep(_LOOK_SECONDS)
        return job

    def _last_attempt(self, name: str) -> JobDetails | None:
        attempts = [job for job in self.all() if _attempt(name, job.submission_id or "")]
        return max(attempts, key=lambda job: _attempt(name, job.submission_id or ""), default=None)

    def _ask(self, question: Callable[[], T], job: str | None = None) -> T:
        """The answer; what Ray and its HTTP client raise becomes one sentence of ours.

        A busy dashboard drops connections. Asking again does no harm: a job that is submitted has its name already.
        """
        for pause in (*_PAUSES, None):
            try:
                return question()
            except AuthenticationError as error:
                raise ClusterError(
                    f"the cluster at {self.address} asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                    "RAY_AUTH_TOKEN_PATH",
                    code="unauthorized",
                    address=self.address,
                ) from error
            except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
                if pause is None:
                    raise _unreachable(self.address, error) from error
                time.sleep(pause)
            except (RuntimeError, ValueError) as error:
                raise self._refusal(error, job) from error
        raise AssertionError("the last try returns or raises")

    def _refusal(self, error: Exception, job: str | None) -> ClusterError:
        if job is not None and "does not exist" in str(error):
            text = f"the cluster at {self.address} knows no job {job}; `regrad submit status` lists them"
            return ClusterError(text, code="job_not_found", job=job, address=self.address)
        reason = in_one_line(error, 500)
        text = f"the cluster at {self.address} refused: {reason}"
        return ClusterError(text, code="refused", address=self.address, reason=reason)


def _check_reachable(address: str) -> None:
    """Raise `ClusterError` soon: Ray's client would wait for as long as the system tries to connect."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClusterError(
            f"{address} is not the address of a dashboard, such as http://127.0.0.1:8265", code="bad_address"
        )
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), _CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> ClusterError:
    return ClusterError(
        f"no Ray dashboard answers at {address} ({first_line(error)}); "
        "`ray dashboard cluster.yaml` forwards that of a cluster",
        code="no_dashboard",
        address=address,
    )


def _attempt(name: str, found: str) -> int:
    """Which attempt at a job a name stands for: 1 for its own, 2 for `NAME-2`; 0 for another job's."""
    match = re.fullmatch(re.escape(name) + r"(?:-(\d+))?", found)
    return 0 if match is None else int(match[1] or 1)


def _next_name(name: str, last: JobDetails | None) -> str:
    return name if last is None else f"{name}-{_attempt(name, last.submission_id or '') + 1}"


def _reason(job: JobDetails, logs: str) -> str:
    """The job's own error, which it ends with; else what Ray says of it."""
    own = [line.removeprefix("error: ") for line in logs.splitlines() if line.startswith("error: ")]
    said = (job.message or "").strip().splitlines()
    return (own[-1:] or said or ["no reason given"])[0]
