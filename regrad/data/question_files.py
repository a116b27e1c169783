"""Opening the file of a question set: compression, size, and checksums of published files."""

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

from regrad.data.config import QuestionSetConfig
from regrad.data.files import IS_UTF_16, UTF_16
from regrad.data.jsonl import as_object, parse_jsonl
from regrad.data.questions import Fields, QuestionKind
from regrad.errors import EvaluationError

_CANNOT_BE_READ = (
    *(OSError, ValueError, EOFError, ImportError, BotoCoreError, ArrowException),
    *(zlib.error, LZMAError, BadZipFile),
)

MAX_BYTES = 2 << 30
"""Of one file, as it is and unpacked: a larger one is no question set."""


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
        """Its records, whichever way they are written.

        A JSON list, a list in the field `inside` of a JSON object, a JSON object of objects, JSON lines, or (by the
        file's ending) a table with a header or Parquet.
        """
        if self.rows is not None:
            return (Fields(f"{self.uri} row {number}", row) for number, row in enumerate(self.rows, start=1))
        if not self.text.strip():
            return iter(())
        if self._ends_in(".csv", ".tsv"):
            return self.table()
        if self._ends_in(".jsonl", ".ndjson", ".json-lines"):
            return self._lines()
        try:
            return self._of_json(json.loads(self.text), inside)
        except (ValueError, RecursionError) as error:
            if "Extra data" in str(error):  # more than one value: JSON lines under another name
                return self._lines()
            raise EvaluationError(f"{self.uri} is not JSON: {error}") from error

    def table(self, names: Sequence[str] = ()) -> Iterator[Fields]:
        """The rows of a csv or tsv file, fields quoted as in csv; `names` are the columns of one without a header."""
        tabs = "\t" in self.text.partition("\n")[0] or self._ends_in(".tsv")
        rows = csv.reader(io.StringIO(self.text, newline=""), delimiter="\t" if tabs else ",", strict=True)
        number = 0
        try:
            header = list(names) or [name.strip() for name in next(rows, [])]
            for number, row in enumerate((row for row in rows if row), start=1):
                if len(row) != len(header):
                    wanted = f"{len(header)} columns ({', '.join(header)})"
                    raise EvaluationError(f"{self.uri} record {number}: expected {wanted}, found {len(row)}")
                yield Fields(f"{self.uri} record {number}", dict(zip(header, row, strict=True)))
        except csv.Error as error:
            raise EvaluationError(f"{self.uri} record {number + 1} is not a row of a table: {error}") from error

    def _of_json(self, value: Any, inside: str) -> Iterator[Fields]:
        if isinstance(value, dict) and inside in value:
            value = value[inside]
        if isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
            return iter([Fields(self._where(i), item, key) for i, (key, item) in enumerate(value.items(), start=1)])
        if not isinstance(value, list):
            wanted = f"a list of records, or an object with the list '{inside}'" if inside else "a list of records"
            raise EvaluationError(f"{self.uri}: {wanted} is expected, found {type(value).__name__}")
        return (self._record(number, item) for number, item in enumerate(value, start=1))

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
    """The name of a file without the ending that says that it is compressed."""
    name = posixpath.basename(uri)
    return name.rpartition(".")[0] if _compression(name) else name


def open_file(
    uri: str, sha256: str | None = None, aliases: str | None = None, published: str | None = None
) -> QuestionFile:
    """Read and check a file: `sha256` is of its bytes as they are stored, `published` of the unpacked ones.

    Raises `EvaluationError` if it cannot be read or has another checksum.
    """
    try:
        raw = _read(uri)
        _check(uri, raw, sha256, "not the one of the settings: its SHA-256")
        data = _unpack(uri, raw)
        unpacked = "not the published file: its SHA-256" + (", unpacked," if _compression(uri) else "")
        _check(uri, data, published, unpacked)
        if unpacked_name(uri).lower().endswith(".parquet"):
            return QuestionFile(uri, "", aliases, pq.read_table(io.BytesIO(data)).to_pylist())
        if data.startswith(UTF_16):
            raise EvaluationError(f"{uri} {IS_UTF_16}", code="utf_16", uri=uri)
        return QuestionFile(uri, data.decode("utf-8-sig"), aliases)
    except FileNotFoundError as error:
        raise EvaluationError(f"{uri} does not exist", code="not_found", uri=uri) from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{uri} is not UTF-8 text: {error}") from error
    except _CANNOT_BE_READ as error:
        raise EvaluationError(f"{uri} cannot be read: {error}") from error


def _check(uri: str, data: bytes, expected: str | None, what: str) -> None:
    if expected and (found := hashlib.sha256(data).hexdigest()) != expected:
        raise EvaluationError(
            f"{uri} is {what} is {found}, expected {expected}; fetch that one, or state sha256 (of the file as it is "
            "stored, or 'any')"
        )


def _read(uri: str) -> bytes:
    fs, path = fsspec.core.url_to_fs(uri)
    size = int(fs.info(path)["size"] or 0)
    if size > MAX_BYTES:
        raise EvaluationError(f"{uri} has {size:,} bytes, more than the {MAX_BYTES:,} of the largest question set")
    return bytes(fs.cat_file(path))


def _unpack(uri: str, raw: bytes) -> bytes:
    kind = _compression(uri)
    if kind is None or not raw:
        return raw
    with compr[kind](io.BytesIO(raw), mode="rb") as stream:
        data: bytes = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise EvaluationError(f"{uri} has more than {MAX_BYTES:,} bytes when it is unpacked")
    return data


def _compression(uri: str) -> str | None:
    return infer_compression(uri.lower())  # type: ignore[no-any-return]


PUBLISHED = {
    "2wikimultihopqa": {
        "dev.json": "79f77ae104088ea8e25b1a65dbece768d45771194663bc5660ec9a98070dadf5",  # of data_ids_april7.zip
        "2wikimultihopqa.json": "895cba294064df0c3302c76847b1fc08d99b5619f7663dfaa3b65cd780f1cac4",  # HippoRAG's
    },
    "hotpotqa": {
        "hotpot_train_v1.1.json": "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316",
        "hotpot_dev_distractor_v1.json": "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea",
        "hotpot_dev_fullwiki_v1.json": "2f1f3e594a3066a3084cc57950ca2713c24712adaad03af6ccce18d1846d5618",
    },
    "musique": {
        "musique_ans_v1.0_train.jsonl": "83a75b1e11e4e9bb8f8308e72ac40ca617ae4431b3a0d955b61cab259248490a",
        "musique_ans_v1.0_dev.jsonl": "15fa63794d18a94ce12411aca6e2327e65b6e83b0b1490efab3f1962e48abf3b",
        "musique_full_v1.0_train.jsonl": "b1cd998f7e0e2838d6fda024e4ad1eb0e7fc3edefdadb0bd9b5b10b0907f2034",
        "musique_full_v1.0_dev.jsonl": "8cab31d56a3a1c4ef491b205a8dab3f1ac9c66e472098c6cf1de4e20294f7a4a",
    },
    "popqa": {"popQA.tsv": "9a5227f41bff0e4c331d4a774d946b12f95307892b58f860a9606ef356e6089b"},
    "nq": {
        "NQ-open.train.jsonl": "0c93aaf13b12f855628489665e4ef85ffb8573ad444646f11f4fabdc57a0aabf",
        "NQ-open.dev.jsonl": "f15567f38099f3615f5b8a685c0aef449c11ad90d3da3735e8d1b98115b40616",
    },
    "pubmedqa": {"ori_pqal.json": "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d"},
}
"""Checksums by format and file name."""


def published_checksum(config: QuestionSetConfig) -> str | None:
    """The checksum that a set's file must have, unpacked: of one that bears a published file's name, compressed or not.

    None if it bears none, or if the settings state a checksum of their own, or `any`.
    """
    if config.sha256 is not None:
        return None
    return PUBLISHED.get(config.format, {}).get(unpacked_name(config.path))
