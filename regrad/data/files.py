"""Which files make up a corpus, and their lines: any fsspec URI, glob or directory, compressed or not."""

from __future__ import annotations

import codecs
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from lzma import LZMAError
from typing import Any
from zlib import error as ZlibError

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem
from pyarrow import ArrowException

from regrad.data.beside import without_passages
from regrad.data.compression import COMPRESSIONS, DECODERS, PACKED, compression
from regrad.errors import CorpusError
from regrad.storage import file_version
from regrad.text import listed

logger = logging.getLogger(__name__)

JSONL, TSV, PARQUET = "jsonl", "tsv", "parquet"
_LINES = (".jsonl", ".ndjson", ".json-lines", ".jsonlines", ".jl")
_FORMATS = {**dict.fromkeys(_LINES, JSONL), ".tsv": TSV, ".parquet": PARQUET}
RECORDS = tuple(_FORMATS)
# What stands beside data; anything else that a reader leaves out may be data, whatever its ending, and is named.
_BESIDE_DATA = re.compile(
    r"(^|/)(readme|licen[cs]e|notice|changelog|citation|authors|makefile)(\.(md|rst|txt|cff|html?))?$"
    r"|\.(sha\d+(sum)?|md5|crc|log|py|sh|ya?ml|toml|cfg|ini|lock|png|jpe?g|svg)$",
    re.IGNORECASE,
)

_HIDDEN = (".", "_")
_MAGIC = re.compile(r"[*?[]")

_SHOWN = 5

_Found = dict[str, dict[str, Any]]
"""What a file system says about each file, by path."""

AN_ARRAY = "is a JSON array, and one object a line is expected; `jq -c '.[]'` writes an array's items as lines"
IS_UTF_16 = "is UTF-16, as its byte order mark (BOM) says; write it as UTF-8"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus, its size as it is stored, and its version: another one, if its content has changed."""

    uri: str
    bytes: int
    version: tuple[Any, ...]


@dataclass(frozen=True)
class Listing:
    """The files at a place, and the paths from there of others: of what holds no passages, and of other endings."""

    files: list[CorpusFile]
    beside: tuple[str, ...]
    others: tuple[str, ...]


def corpus_files(uri: str) -> list[CorpusFile]:
    """The files of a corpus, sorted by path; raises `CorpusError` if there is none.

    What stands beside one and holds no passages (`regrad.data.beside`) is left out, but if it is named itself.
    """
    found = find_files(uri, RECORDS, passages=True)
    check_found(uri, found, RECORDS, "of a corpus")
    if not file_format(found.files[0].uri):
        raise CorpusError(f"{uri} {_misnamed(found.files[0].uri)}", code="wrong_ending", uri=uri)
    return found.files


def files_with(uri: str, endings: Sequence[str], what: str) -> list[CorpusFile]:
    """The file at `uri`, whatever its name; or those with one of the endings below it or matching it, sorted by path.

    The text formats may be compressed. Raises `CorpusError`, which calls the files `what`, if there is none; others
    that may be data are named in one line of the log.
    """
    found = find_files(uri, endings)
    check_found(uri, found, endings, what)
    return found.files


def find_files(
    uri: str, endings: Sequence[str], hidden: tuple[str, ...] = _HIDDEN, *, passages: bool = False
) -> Listing:
    """As `files_with`, with the others; none at all is no error. Names that begin as `hidden` says are left out."""
    with reading(uri):
        fs, root = fsspec.core.url_to_fs(uri)
        fs.invalidate_cache()
        found = _look_up(fs, root, hidden)
        # A directory is listed whole, a glob may match the one file and not the other.
        more = partial(_listed, fs) if has_magic(root) else None
        beside = without_passages(found, more) - {root} if passages else set()
    files = [
        CorpusFile(
            uri if path == root else _uri_of(path, uri, fs, root), int(info.get("size") or 0), _version(fs, path, info)
        )
        for path, info in sorted(found.items())
        if path == root or (_ending(path, endings) and path not in beside)
    ]
    others = found.keys() - beside - {root}
    return Listing(files, _named(beside, root), _named((path for path in others if not _ending(path, endings)), root))


def _listed(fs: Any, directory: str) -> list[str]:
    try:
        return list(fs.ls(directory, detail=False))
    except FileNotFoundError:
        return []


def _named(paths: Iterable[str], root: str) -> tuple[str, ...]:
    return tuple(path.removeprefix(root).lstrip("/") for path in sorted(paths))


def check_found(uri: str, found: Listing, endings: Sequence[str], what: str) -> None:
    """Raise `CorpusError`, which calls the files `what`, if there are none; log which others there are."""
    if not found.files:
        left = (*found.others, *found.beside)
        has = f"; it has {listed(left, _SHOWN)}" if left else ""
        text = f"{uri} holds no file {what}; such a file ends in one of {_known(endings)}{has}"
        raise CorpusError(text, code="no_file", uri=uri)
    _tell_left_out(uri, found, _known(endings))


def _version(fs: Any, path: str, info: dict[str, Any]) -> tuple[Any, ...]:
    """Of a link that of what it leads to, which a listing does not say."""
    with suppress(OSError):
        return file_version(fs.info(path) if info.get("islink") else info)
    return file_version(info)


def _known(endings: Sequence[str]) -> str:
    return f"{', '.join(endings)}; the text formats also with {', '.join(COMPRESSIONS)}"


def _misnamed(uri: str) -> str:
    """What is to be said of a file whose ending says nothing: its first byte tells whether it is JSON."""
    try:
        first = next(each_line(uri), (b"", 0, False))[0].lstrip()[:1]
    except CorpusError:
        first = b""
    if first == b"[":
        return AN_ARRAY
    advice = " (.jsonl if it has one JSON object a line)" if first == b"{" else ""
    return f"is not a corpus file; give it the right one of these endings{advice}: {_known(RECORDS)}"


def file_format(path: str) -> str | None:
    """`jsonl`, `tsv` or `parquet`, as the name says, if it does; in capitals, too."""
    ending = _ending(path, RECORDS)
    return _FORMATS[ending] if ending else None


def endings_of(*formats: str) -> tuple[str, ...]:
    """The endings of files in these formats."""
    return tuple(ending for ending, kind in _FORMATS.items() if kind in formats)


def _ending(path: str, endings: Sequence[str]) -> str | None:
    packed = compression(path)
    name = path.lower().removesuffix(packed)
    found = next((ending for ending in endings if name.endswith(ending)), None)
    return None if packed and found and _FORMATS.get(found) == PARQUET else found


def may_be_data(name: str) -> bool:
    """Whether a file may be data as its name says, and is not about data, as README is."""
    return not _BESIDE_DATA.search(name)


def _tell_left_out(uri: str, found: Listing, known: str) -> None:
    """Log in one line which of a directory's files may be data and are not read, and in one which hold no passages.

    Once a process: a job looks its corpus up several times.
    """
    _tell(uri, "not read, for the ending", tuple(filter(may_be_data, found.others)), f" (read are {known})")
    _tell(uri, "not read, as it stands beside a corpus and holds no passages", found.beside)


@cache
def _tell(uri: str, why: str, names: tuple[str, ...], more: str = "") -> None:
    if names:
        logger.warning("%s: %s: %s%s", uri, why, listed(names, _SHOWN), more)


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Raises `CorpusError`, naming the file and what to do, for any error of a file system or a decoder."""
    try:
        yield
    except FileNotFoundError as error:
        raise CorpusError(
            f"{uri} does not exist; check the path, which is relative to where you run", code="not_found", uri=uri
        ) from error
    except PermissionError as error:
        raise CorpusError(
            f"{uri} cannot be read: {error}; change its permissions, or take it out of the corpus",
            code="forbidden",
            uri=uri,
        ) from error
    except (EOFError, ZlibError, LZMAError, ArrowException, OSError, ValueError, ImportError, BotoCoreError) as error:
        # An error with a number comes from the file system and says enough; a decoder's tells of damaged content.
        if isinstance(error, ImportError | BotoCoreError) or (isinstance(error, OSError) and error.errno is not None):
            raise CorpusError(f"{uri} cannot be read: {error}", code="unreadable", uri=uri) from error
        raise CorpusError(
            f"{uri} cannot be read: {error}; it is damaged or not what its name says: copy it or make it again",
            code="damaged",
            uri=uri,
        ) from error


def _look_up(fs: Any, root: str, hidden: tuple[str, ...]) -> _Found:
    """The file at `root`, or what is below it, or what matches it. A name that exists is never taken for a glob."""
    try:
        return _below(fs, root, fs.info(root), hidden)
    except FileNotFoundError:
        if not has_magic(root):
            raise
    matches: _Found = fs.glob(root, detail=True)
    above = _MAGIC.split(root)[0].rpartition("/")[0]
    shown = {
        path: info for path, info in matches.items() if not any(part.startswith(hidden) for part in _parts(path, above))
    }
    return {path: info for name, found in shown.items() for path, info in _below(fs, name, found, hidden).items()}


def _below(
    fs: Any, path: str, info: dict[str, Any], hidden: tuple[str, ...], above: frozenset[str] = frozenset()
) -> _Found:
    """The file itself, or all files below the directory except hidden ones."""
    # A link to a directory is neither a file nor a directory in a listing. One that leads to where it is in is a loop.
    if info["type"] != "directory" and not (info.get("islink") and fs.isdir(path)):
        return {path: info}
    place = os.path.realpath(path) if isinstance(fs, LocalFileSystem) else path
    if place in above:
        return {}
    files: _Found = {}
    # Not fs.find or fs.walk: they leave out a directory that cannot be listed, silently, with all that is in it.
    for entry in fs.ls(path, detail=True):
        name = entry["name"].rstrip("/")
        # A store may list a directory as an entry of itself.
        if name != path and not _parts(name, path)[-1].startswith(hidden):
            files |= _below(fs, name, entry, hidden, above | {place})
    return files


def _parts(path: str, above: str) -> list[str]:
    return path.removeprefix(above).strip("/").split("/")


def _uri_of(path: str, uri: str, fs: Any, root: str) -> str:
    """The URI of a file that was found, spelt as `uri` is: with the same protocol."""
    if uri.rstrip("/").endswith(root):
        return uri.rstrip("/").removesuffix(root) + path
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


MAX_LINE_BYTES = 8 * 1024 * 1024
"""A longer line of a corpus is refused: it is not a passage."""

LINE_TOO_LONG = f"longer than {MAX_LINE_BYTES} bytes"

_CHUNK = 1024 * 1024
_REMOTE_BLOCK = 8 * 1024 * 1024
_KEPT = 4096


Line = tuple[bytes, int, bool]
"""A line without its end; how much of the stored file was read for it; whether it was too long and was cut."""


def each_line(uri: str) -> Iterator[Line]:
    """All lines, also blank ones; only a newline ends a line. Raises `CorpusError` if the file is damaged."""
    with reading(uri):
        fs, path = fsspec.core.url_to_fs(uri)
        with fs.open(path, "rb", block_size=_REMOTE_BLOCK) as raw:
            # A file of no bytes is an empty one, although no compressor would have written it.
            if raw.read(1):
                raw.seek(0)
                yield from _split(uri, DECODERS[compression(path)](raw), raw.tell)


def read_whole(uri: str, most: int) -> bytes:
    """A file's content, unpacked, at most `most` bytes of it; raises `CorpusError` if it cannot be read."""
    with reading(uri):
        fs, path = fsspec.core.url_to_fs(uri)
        with fs.open(path, "rb", block_size=_REMOTE_BLOCK) as raw:
            return bytes(DECODERS[compression(path)](raw).read(most))


def _split(uri: str, stream: Any, position: Callable[[], int]) -> Iterator[Line]:
    held, cut, before, mark = b"", False, 0, codecs.BOM_UTF8
    while data := stream.read(_CHUNK):
        if mark and data.startswith(UTF_16):
            raise CorpusError(f"{uri} {IS_UTF_16}", code="utf_16", uri=uri)
        if mark and (packed := next((name for name, magic in PACKED.items() if data.startswith(magic)), "")):
            raise CorpusError(f"{uri} is compressed; add {packed} to its name", code="packed", uri=uri)
        first, *others = data.split(b"\n")
        held, cut = _capped(held + first.removeprefix(mark), cut)
        mark = b""
        if others:
            # What was read since the last line is divided among the lines that end in this chunk.
            share, rest = divmod(position() - before, len(others))
            before += share * len(others) + rest
            yield held, share + rest, cut
            held, cut = others.pop(), False
            for line in others:
                yield line, share, False
    if held:
        yield held, position() - before, cut


def _capped(line: bytes, cut: bool) -> tuple[bytes, bool]:
    """The line, or its beginning if it is too long or already cut; and whether it was cut."""
    cut = cut or len(line) > MAX_LINE_BYTES
    return (line[:_KEPT] if cut else line), cut
