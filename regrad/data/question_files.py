"""Opening the file of a question set: unpacked, decoded, its size and checksum checked; and its records."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import posixpath
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from lzma import LZMAError
from typing import Any
from zipfile import BadZipFile

import fsspec
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError
from fsspec.compression import compr
from fsspec.utils import infer_compression
from pyarrow import ArrowException

from regrad.data.files import IS_UTF_16, JSONL, UTF_16, endings_of
from regrad.data.jsonl import as_object, parse_jsonl
from regrad.data.questions import Fields, QuestionKind
from regrad.errors import EvaluationError

_CANNOT_BE_READ = (
    *(OSError, ValueError, EOFError, ImportError, BotoCoreError, ArrowException),
    *(zlib.error, LZMAError, BadZipFile),
)

MAX_BYTES = 2 << 30
"""Of one file, as stored and unpacked: a larger one is no question set."""


@dataclass(frozen=True)
class QuestionFile:
    """One file, unpacked and decoded; `aliases` is where the set's table of aliases is, if it has one."""

    uri: str
    text: str
    aliases: str | None = None
    rows: Sequence[Mapping[str, Any]] | None = None
    """Of a Parquet file, which has no text."""
    kind: QuestionKind | None = None
    """How the settings want its questions asked."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many of its questions a reader passes over, by the reason."""

    def records(self, inside: str = "") -> Iterator[Fields]:
        """The file's records, in any of these forms.

        A JSON list, a list in the field `inside` of a JSON object, a JSON object of objects, JSON lines, or (by the
        file's ending) a table with a header or Parquet.
        """
        if self.rows is not None:
            return (Fields(f"{self.uri} row {number}", row) for number, row in enumerate(self.rows, start=1))
        if not self.text.strip():
            return iter(())
        if self._ends_in(".csv", ".tsv"):
            return self.table()
        if self._ends_in(*endings_of(JSONL)):
            return self._lines()
        try:
            value = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            if "Extra data" in str(error):  # more than one value: JSON lines under another name
                return self._lines()
            raise EvaluationError(f"{self.uri} is not JSON: {error}", code="not_json", uri=self.uri) from error
        if isinstance(value, dict) and inside in value:
            value = value[inside]
        if isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
            return iter([Fields(self._where(i), item, key) for i, (key, item) in enumerate(value.items(), start=1)])
        if isinstance(value, dict) and not inside and "question" in value:  # a single JSON line under another name
            return iter([self._record(1, value)])
        if not isinstance(value, list):
            wanted = f"a list of records, or an object with the list '{inside}'" if inside else "a list of records"
            raise EvaluationError(
                f"{self.uri}: {wanted} is expected, found {type(value).__name__}",
                code="no_records",
                uri=self.uri,
                inside=inside,
            )
        return (self._record(number, item) for number, item in enumerate(value, start=1))

    def table(self, names: Sequence[str] = ()) -> Iterator[Fields]:
        """The rows of a csv or tsv file, with csv's quoting; `names` are the columns of a file without a header."""
        tabs = "\t" in self.text.partition("\n")[0] or self._ends_in(".tsv")
        rows = csv.reader(io.StringIO(self.text, newline=""), delimiter="\t" if tabs else ",", strict=True)
        number = 0
        try:
            header = list(names) or [name.strip() for name in next(rows, [])]
            for number, row in enumerate((row for row in rows if row), start=1):
                where = self._where(number)
                if len(row) != len(header):
                    raise EvaluationError(
                        f"{where}: expected {len(header)} columns ({', '.join(header)}), found {len(row)}",
                        code="bad_row",
                        where=where,
                    )
                yield Fields(where, dict(zip(header, row, strict=True)))
        except csv.Error as error:
            where = self._where(number + 1)
            raise EvaluationError(f"{where} is not a row of a table: {error}", code="bad_row", where=where) from error

    def _lines(self) -> Iterator[Fields]:
        for where, value in parse_jsonl(self.text, self.uri, EvaluationError):
            yield Fields(where, value)

    def _record(self, number: int, value: Any) -> Fields:
        return Fields(self._where(number), as_object(value, self._where(number), EvaluationError))

    def _where(self, number: int) -> str:
        return f"{self.uri} record {number}"

    def _ends_in(self, *endings: str) -> bool:
        return unpacked_name(self.uri).lower().endswith(endings)


def unpacked_name(uri: str) -> str:
    """The name of a file without the ending of its compression."""
    name = posixpath.basename(uri)
    return name.rpartition(".")[0] if _compression(name) else name


def open_file(
    uri: str, sha256: str | None = None, aliases: str | None = None, published: str | None = None
) -> QuestionFile:
    """Read and check a file: `sha256` is of its bytes as stored, `published` of the unpacked ones.

    Raises `EvaluationError` if it cannot be read or has another checksum.
    """
    try:
        raw = _read(uri)
        _check(uri, raw, sha256, "not the file of the settings: its SHA-256", "other_file")
        data = _unpack(uri, raw)
        unpacked = "not the published file: its SHA-256" + (", unpacked," if _compression(uri) else "")
        _check(uri, data, published, unpacked, "not_the_published_file")
        if unpacked_name(uri).lower().endswith(".parquet"):
            return QuestionFile(uri, "", aliases, pq.read_table(io.BytesIO(data)).to_pylist())
        if data.startswith(UTF_16):
            raise EvaluationError(f"{uri} {IS_UTF_16}", code="utf_16", uri=uri)
        return QuestionFile(uri, data.decode("utf-8-sig"), aliases)
    except FileNotFoundError as error:
        raise EvaluationError(f"{uri} does not exist", code="not_found", uri=uri) from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{uri} is not UTF-8 text: {error}", code="not_utf8", uri=uri) from error
    except _CANNOT_BE_READ as error:
        raise EvaluationError(f"{uri} cannot be read: {error}", code="unreadable", uri=uri) from error


def _check(uri: str, data: bytes, expected: str | None, what: str, code: str) -> None:
    if expected and (found := hashlib.sha256(data).hexdigest()) != expected:
        raise EvaluationError(
            f"{uri} is {what} is {found}, expected {expected}; fetch the right one, or set sha256 (of the file as it "
            "is stored, or 'any')",
            code=code,
            uri=uri,
            found=found,
            expected=expected,
        )


def _read(uri: str) -> bytes:
    fs, path = fsspec.core.url_to_fs(uri)
    size = int(fs.info(path)["size"] or 0)
    if size > MAX_BYTES:
        raise EvaluationError(
            f"{uri} has {size:,} bytes, more than the {MAX_BYTES:,} allowed for a question set",
            code="too_large",
            uri=uri,
        )
    return bytes(fs.cat_file(path))


def _unpack(uri: str, raw: bytes) -> bytes:
    kind = _compression(uri)
    if kind is None or not raw:
        return raw
    with compr[kind](io.BytesIO(raw), mode="rb") as stream:
        data: bytes = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise EvaluationError(
            f"{uri} has more than {MAX_BYTES:,} bytes when it is unpacked", code="unpacks_to_too_much", uri=uri
        )
    return data


def _compression(uri: str) -> str | None:
    return infer_compression(uri.lower())  # type: ignore[no-any-return]
