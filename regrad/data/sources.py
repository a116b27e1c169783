"""What a corpus is made of: the files at a place, those with records and those that are documents."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from regrad.data.compression import unpacked
from regrad.data.corpora import read_raw
from regrad.data.documents import CHARACTER, DOCUMENTS, LINE, directory_of, name_in, unit_of
from regrad.data.files import (
    PARQUET,
    RECORDS,
    CorpusFile,
    check_found,
    corpus_files,
    file_format,
    find_files,
    may_be_data,
)
from regrad.data.json_files import ITEM, JSON, is_json, read_json
from regrad.data.jsonl import RawLine
from regrad.text import listed

logger = logging.getLogger(__name__)

_READ = (*RECORDS, *JSON, *DOCUMENTS)
_SHOWN = 5


@dataclass(frozen=True)
class SourceFile:
    """A file of records, or a document."""

    file: CorpusFile
    is_document: bool

    @property
    def uri(self) -> str:
        """Where it is."""
        return self.file.uri

    def records(self) -> Iterator[RawLine]:
        """Its records in order, good and bad; raises `CorpusError` if the file cannot be read."""
        return read_json(self.uri) if is_json(self.uri) else read_raw(self.uri)

    def where(self, number: int) -> str:
        """The file, and its line, row, item or page of this number; HTML has no such places."""
        if self.is_document:
            unit = unit_of(self.uri)
        else:
            unit = ITEM if is_json(self.uri) else "row" if file_format(self.uri) == PARQUET else LINE
        return self.uri if unit == CHARACTER else f"{self.uri} {unit} {number}"


@dataclass(frozen=True)
class CorpusSource:
    """One of a corpus's sources: its files by path, and how many others may be data, but are not read."""

    uri: str
    files: list[SourceFile]
    left_out: int

    @property
    def directory(self) -> str:
        """Where the files are from."""
        return directory_of(self.uri, self.files[0].uri)


def find_source(uri: str) -> CorpusSource:
    """The files with records and the documents there. Hidden ones are left out: `.x`, and of records also `_x`.

    So is what holds no passages (`regrad.data.beside`) and, where there are records, what is said of them (README and
    the like). Raises `CorpusError` if there is nothing else.
    """
    found = find_files(uri, _READ, (".",), passages=True)
    if [file.uri for file in found.files] == [uri]:
        document = _is_document(uri)
        alone = found.files if document or is_json(uri) else corpus_files(uri)  # which refuses a wrong name
        return CorpusSource(uri, [SourceFile(file, document) for file in alone], 0)
    files = [SourceFile(file, _is_document(file.uri)) for file in found.files]
    files = [one for one in files if one.is_document or not _has_underscore(uri, one.uri)]
    about = _about(files)
    found = replace(found, files=[one.file for one in files if one not in about])
    check_found(uri, found, _READ, "of records or of text")
    if about:
        names = listed([name_in(directory_of(uri, one.uri), one.uri) for one in about], _SHOWN)
        logger.warning("%s: not read, since they only describe the records that they stand beside: %s", uri, names)
    left_out = len(found.beside) + sum(map(may_be_data, found.others)) + len(about)
    return CorpusSource(uri, [one for one in files if one not in about], left_out)


def _is_document(uri: str) -> bool:
    return unpacked(uri).endswith(DOCUMENTS)


def _has_underscore(uri: str, file: str) -> bool:
    return any(part.startswith("_") for part in name_in(directory_of(uri, file), file).split("/"))


def _about(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The documents that, by their names, are about records beside or below them; a .json file may be anything."""
    records = [one for one in files if not one.is_document and not is_json(one.uri)]
    above = {directory for one in records for directory in _directories(one.uri)}
    return [one for one in files if one.is_document and not may_be_data(one.uri) and _directory(one.uri) in above]


def _directory(uri: str) -> str:
    return uri.rpartition("/")[0]


def _directories(uri: str) -> Iterator[str]:
    while uri := _directory(uri):
        yield uri
