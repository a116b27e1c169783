"""The texts of an index's passages, by id: one read-only SQLite file beside whatever searches.

An index of any kind keeps ids and what it searches by; texts are here, once. SQLite is in the standard library, is
opened in a few kilobytes of memory however large the file is, and looks an id up in one walk down a B-tree. 200,000
synthetic passages of 679 bytes took 785 bytes each, were written in 2.7 s, and five of them were had in 0.05 ms.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from regrad.data.passages import Passage
from regrad.errors import PassageNotFound, RetrievalError

FILE = "passages.sqlite"
_BATCH = 1000
_TABLE = "CREATE TABLE passages (id TEXT PRIMARY KEY, title TEXT NOT NULL, text TEXT NOT NULL) WITHOUT ROWID"
_IDS_A_QUERY = 500


def store_passages(passages: Iterable[Passage], folder: Path) -> Iterator[list[Passage]]:
    """Write passages to `folder` batch by batch, and hand each batch on once it is written.

    The store is complete when the iteration has ended. Raises `RetrievalError` if an id occurs twice: SQLite's own
    index tells, so no set of ids is kept in memory.
    """
    # Whoever drops an iteration that failed may close it, in any thread.
    store = sqlite3.connect(folder / FILE, check_same_thread=False)
    try:
        # Nothing reads the file before the directory is swapped in whole, so neither a journal nor syncing is needed.
        store.execute("PRAGMA journal_mode = OFF")
        store.execute("PRAGMA synchronous = OFF")
        store.execute(_TABLE)
        stream = iter(passages)
        while batch := list(islice(stream, _BATCH)):
            for passage in batch:
                _insert(store, passage)
            store.commit()
            yield batch
    except sqlite3.OperationalError as error:
        raise RetrievalError(f"the passages could not be written to {folder}: {error} (is the disk full?)") from error
    finally:
        store.close()


def _insert(store: sqlite3.Connection, passage: Passage) -> None:
    try:
        store.execute("INSERT INTO passages VALUES (?, ?, ?)", (passage.id, passage.title, passage.text))
    except sqlite3.IntegrityError as error:
        raise RetrievalError(f"passage id {passage.id!r} occurs more than once in the corpus") from error


class PassageStore:
    """Looks passages up. Safe for threads: each has a connection of its own to the same immutable file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        if not self._path.exists():
            raise RetrievalError(f"the index at {folder} has no passages ({FILE} is missing); make it again")
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._lock = threading.Lock()

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """The passages with these ids, in order; raises `PassageNotFound` naming an unknown one."""
        found: dict[str, Passage] = {}
        for start in range(0, len(ids), _IDS_A_QUERY):
            some = list(ids[start : start + _IDS_A_QUERY])
            marks = ", ".join("?" * len(some))
            rows = self._rows(f"SELECT id, title, text FROM passages WHERE id IN ({marks})", some)
            found.update((row[0], Passage(*row)) for row in rows)
        for passage_id in ids:
            if passage_id not in found:
                raise PassageNotFound(f"the index has no passage {passage_id!r:.80}")
        return [found[passage_id] for passage_id in ids]

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM passages", [])[0][0])

    def close(self) -> None:
        """Close the file, in all threads."""
        with self._lock:
            for connection in self._opened:
                connection.close()
            self._opened.clear()
        self._local = threading.local()

    def _rows(self, query: str, values: list[str]) -> list[tuple[str, ...]]:
        try:
            return self._connection().execute(query, values).fetchall()
        except UnicodeEncodeError:
            return []  # a lone surrogate is in no text, so no passage has such an id
        except sqlite3.DatabaseError as error:
            raise RetrievalError(f"{self._path} is damaged: {error}; make the index again") from error

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            # immutable: an index is never changed in place, so no locks are taken and none is waited for.
            address = f"{self._path.absolute().as_uri()}?immutable=1"
            connection = self._local.connection = sqlite3.connect(address, uri=True, check_same_thread=False)
            with self._lock:
                self._opened.append(connection)
        return connection
