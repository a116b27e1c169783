"""The texts of an index's passages, by id: one read-only SQLite file beside whatever searches.

An index of any kind keeps ids and what it searches by; the texts are here, once. SQLite is in the standard library,
and looks an id up in two walks down B-trees: from the id to the row's number, and from there to the row. Rows are in
the corpus's order, and the tree of ids is made at the end, by one sort: if rows were kept by id, each insert would go
to a random page, and a file larger than the cache would be read and written over and over.

Measured with synthetic passages of 660 bytes and random ids of 16: 738 bytes each, 49 s to make and write 3 million.
In comparison, one million took 13 s, and 36 s and 932 bytes each if rows are kept by id. Opening reads nothing, and a
connection keeps at most 2 MB of pages, however large the file; reading five passages takes 0.1 ms with a warm cache.
Writing took the process to 200 MB and, while the ids are sorted, takes a temporary file of about their size (the
environment's SQLITE_TMPDIR says where).
"""

from __future__ import annotations

import sqlite3
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from regrad.data.passages import Passage
from regrad.errors import PassageNotFound, RetrievalError

FILE = "passages.sqlite"
_BATCH = 1000
_TABLE = "CREATE TABLE passages (id TEXT NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL, crc INTEGER NOT NULL)"
_PAGE_BYTES = 16384
"""A row does not begin on a page that has no room for it: with SQLite's default of 4096, a fifth would stay empty."""
_CACHE_KIB = 64 * 1024
_LOOK_UP = "SELECT id, title, text, crc FROM passages WHERE id = ?"


def store_passages(passages: Iterable[Passage], folder: Path) -> Iterator[list[Passage]]:
    """Write passages to `folder` batch by batch, and yield each batch once it is written.

    The store is complete when the iteration has ended. Then it raises `RetrievalError` if an id occurs twice: the sort
    of the ids finds that, so no set of them is kept in memory.
    """
    # An iteration that failed may be closed by any thread, wherever its last reference is dropped.
    store = sqlite3.connect(folder / FILE, check_same_thread=False)
    try:
        # Nothing reads the file before the directory is swapped in whole, so neither a journal nor syncing is needed.
        store.execute("PRAGMA journal_mode = OFF")
        store.execute("PRAGMA synchronous = OFF")
        store.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        store.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        store.execute(_TABLE)
        stream = iter(passages)
        while batch := list(islice(stream, _BATCH)):
            store.executemany("INSERT INTO passages VALUES (?, ?, ?, ?)", map(_row, batch))
            store.commit()
            yield batch
        try:
            store.execute("CREATE UNIQUE INDEX passage_ids ON passages (id)")
        except sqlite3.IntegrityError as error:
            twice = "SELECT id FROM passages GROUP BY id HAVING count(*) > 1 ORDER BY min(rowid) LIMIT 1"
            (passage_id,) = store.execute(twice).fetchone()
            raise RetrievalError(
                f"passage id {passage_id!r} occurs more than once in the corpus",
                code="duplicate_id",
                passage_id=passage_id,
            ) from error
    except sqlite3.OperationalError as error:
        raise RetrievalError(
            f"the passages could not be written to {folder}: {error} (is the disk full?)", code="not_written"
        ) from error
    finally:
        store.close()


def is_text(passage_id: str) -> bool:
    """Whether it can be a passage's: no text has a lone surrogate, and SQLite cannot be asked for one."""
    try:
        passage_id.encode()
    except UnicodeEncodeError:
        return False
    return True


def _row(passage: Passage) -> tuple[str, str, str, int]:
    return passage.id, passage.title, passage.text, _crc(passage.id, passage.title, passage.text)


def _crc(passage_id: str, title: str, text: str) -> int:
    return zlib.crc32(f"{passage_id}\x00{title}\x00{text}".encode())


class PassageStore:
    """Looks passages up. Safe for threads: no two use the same connection to the immutable file at once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        if not self._path.exists():
            raise RetrievalError(
                f"the index at {folder} has no passages ({FILE} is missing); make it again",
                code="incomplete",
                file=FILE,
            )
        # Connections that are not in use. A thread takes one and puts it back, so there are as many as threads ever
        # read at once, and none is lost with a thread that ends. A deque's pop and append need no lock.
        self._idle: deque[sqlite3.Connection] = deque()

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """The passages with these ids, in order; raises `PassageNotFound` naming an unknown one.

        Raises `RetrievalError` if a passage is not what was written.
        """
        with self._connection() as connection:
            return [self._passage(connection, passage_id) for passage_id in ids]

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of these ids that have a passage here."""
        with self._connection() as connection:
            find = "SELECT 1 FROM passages WHERE id = ?"
            return {each for each in ids if is_text(each) and connection.execute(find, [each]).fetchone()}

    def ids(self) -> list[str]:
        """All ids, in the corpus's order."""
        with self._connection() as connection:
            return [str(row[0]) for row in connection.execute("SELECT id FROM passages ORDER BY rowid")]

    def blocks(self, size: int) -> Iterator[list[Passage]]:
        """All passages in the corpus's order, `size` at a time (the last time fewer); raises as `passages` does."""
        with self._connection() as connection:
            rows = connection.execute("SELECT id, title, text, crc FROM passages ORDER BY rowid")
            while block := rows.fetchmany(size):
                yield [self._checked(row) for row in block]

    def ids_of_rows(self, rows: Sequence[int]) -> dict[int, str]:
        """The ids of the passages at these places of the corpus, counted from 0."""
        with self._connection() as connection:
            find = "SELECT id FROM passages WHERE rowid = ?"
            return {row: str(connection.execute(find, [row + 1]).fetchone()[0]) for row in rows}

    def __len__(self) -> int:
        with self._connection() as connection:
            return int(connection.execute("SELECT count(*) FROM passages").fetchone()[0])

    def close(self) -> None:
        """Close the file; a look-up after this opens it again."""
        while self._idle:
            self._idle.pop().close()

    def _passage(self, connection: sqlite3.Connection, passage_id: str) -> Passage:
        try:
            row = connection.execute(_LOOK_UP, [passage_id]).fetchone()
        except UnicodeEncodeError:
            row = None  # no text has a lone surrogate, so no passage has such an id
        if row is None:
            raise PassageNotFound(f"the index has no passage {passage_id!r:.80}", passage_id=passage_id)
        return self._checked(row)

    def _checked(self, row: tuple[str, str, str, int]) -> Passage:
        passage_id, title, text, crc = row
        # SQLite keeps no checksums: a text with a flipped bit would be answered from like any other.
        if _crc(passage_id, title, text) != crc:
            raise self._damaged(f"passage {passage_id!r:.80} is not what was written", passage_id=passage_id)
        return Passage(passage_id, title, text)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._open()
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error
        finally:
            self._idle.append(connection)

    def _open(self) -> sqlite3.Connection:
        # immutable: an index is never changed in place, so no lock is taken or waited for.
        address = f"{self._path.absolute().as_uri()}?immutable=1"
        return sqlite3.connect(address, uri=True, check_same_thread=False)

    def _damaged(self, reason: str, **fields: object) -> RetrievalError:
        return RetrievalError(f"{self._path} is damaged: {reason}; make the index again", code="damaged", **fields)
