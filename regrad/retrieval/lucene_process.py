"""Lucene in a process of its own, one for each process that needs it, asked over a pipe.

A JVM in a process with torch is not safe: such processes died in torch's kernels, and once went on with damaged memory.
Here nothing of Java is beside a model, and a JVM that dies is started again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from regrad.errors import JavaNotFound, RetrievalError

_WORKER = "regrad.retrieval.lucene_worker"
_ERRORS = {kind.__name__: kind for kind in (RetrievalError, JavaNotFound)}


class LuceneProcess:
    """Starts when it is first asked. Safe to use from many threads; one request is answered at a time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, do: str, **arguments: Any) -> Any:
        """The result of a request of `lucene_worker.Lucene`, or its error, a `RetrievalError`."""
        with self.alone():
            reply = self._exchange(json.dumps({"do": do, **arguments}))
        if failed := reply.get("error"):
            error = _ERRORS[failed["kind"]](failed["text"], **failed["fields"])
            error.code = failed["code"]
            raise error
        return reply["result"]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from asking meanwhile; what is interrupted ends the process, whose next reply would be late."""
        with self._lock:
            try:
                yield
            except RetrievalError:  # a reply, too
                raise
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End the process; it is started again when there is a request."""
        with self._lock:
            if self._process is None:
                return
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int | None:
        """The process's number, if it runs."""
        return None if self._process is None else self._process.pid

    def _exchange(self, line: str) -> dict[str, Any]:
        if self._process is None:
            self._process = _start()
        asking, replies = self._process.stdin, self._process.stdout
        assert asking is not None
        assert replies is not None
        try:
            asking.write(line + "\n")
            asking.flush()
            reply = replies.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            status = self._process.wait()
            self.stop()
            raise RetrievalError(
                f"the process in which Lucene runs ended with status {status}; ask again, and another is started",
                code="lucene_ended",
                status=status,
            )
        return dict(json.loads(reply))


def _start() -> subprocess.Popen[str]:
    # Wherever this process found the package, the new one finds it, too.
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        encoding="utf-8",
    )


def lucene() -> LuceneProcess:
    """This process's own; a fork does not share its parent's."""
    return _of(os.getpid())


@cache
def _of(pid: int) -> LuceneProcess:
    return LuceneProcess()
