"""An index that changes while it is searched: a new version is opened beside the one that answers, then takes over."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from regrad.retrieval.base import Retriever

logger = logging.getLogger(__name__)


class IndexVersions:
    """The newest version of an index that could be opened; `seconds` pass between two looks for a newer one.

    A thread of its own looks and opens, so no request waits for it: the older version answers meanwhile. A request
    has one version from its beginning to its end (`pinned`); one that was replaced is closed when the last request that
    has it is done. If the store does not answer, the version that is open is used.
    """

    def __init__(self, retriever: Retriever, seconds: float) -> None:
        self._newest = retriever
        self._users: Counter[Retriever] = Counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(seconds,), name="index-versions", daemon=True)
        self._thread.start()

    @contextmanager
    def pinned(self) -> Iterator[Retriever]:
        """The newest version; it stays open inside the block, even if a newer one takes its place."""
        with self._lock:
            retriever = self._newest
            self._users[retriever] += 1
        try:
            yield retriever
        finally:
            with self._lock:
                self._users[retriever] -= 1
                was_last = not self._users[retriever]
                if was_last:
                    del self._users[retriever]
                replaced = retriever is not self._newest
            # Either this or `_look` closes it: whoever sees, under the lock, that it is both replaced and unused.
            if was_last and replaced:
                retriever.retire()

    def close(self) -> None:
        """Look no more, and close the version that is open."""
        self._ended.set()
        self._thread.join()
        self._newest.close()

    def _follow(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            try:
                self._look()
            except Exception as error:  # of whatever kind: a thread that ended here would never look again
                logger.warning("the index cannot be looked at, and is used as it is: %s", error)

    def _look(self) -> None:
        newer = self._newest.newest()
        if newer is self._newest:
            return
        with self._lock:
            old, self._newest = self._newest, newer
            unused = old not in self._users
        if unused:
            old.retire()
