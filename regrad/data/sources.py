"""What a corpus is made of: the files at a place, records and documents."""

from __future__ import annotations

from dataclasses import dataclass

from regrad.data.compression import unpacked
from regrad.data.documents import DOCUMENTS, directory_of
from regrad.data.files import CorpusFile, check_found, corpus_files, find_files
from regrad.errors import CorpusError


@dataclass(frozen=True)
class SourceFile:
    """A file of records, or a document."""

    file: CorpusFile
    is_document: bool

    @property
    def uri(self) -> str:
        """Where it is."""
        return self.file.uri


@dataclass(frozen=True)
class Source:
    """One of a corpus's sources: its files by path, and how many hold no passages, but stand beside one that does."""

    uri: str
    files: list[SourceFile]
    left_out: int

    @property
    def directory(self) -> str:
        """Where the files are from."""
        return directory_of(self.uri, self.files[0].uri)


def find_source(uri: str) -> Source:
    """The files with records there, or, if there are none, the documents: hidden ones are left out, `.x` but not `_x`.

    What holds no passages (`regrad.data.beside`) is neither. Raises `CorpusError` if there is nothing else.
    """
    try:
        if unpacked(uri).endswith(DOCUMENTS):
            return _documents(uri)
        files = [SourceFile(file, False) for file in corpus_files(uri)]
    except CorpusError as error:
        if error.code != "corpus.no_file":
            raise
        return _documents(uri)
    return Source(uri, files, len(find_files(uri, (), passages=True).beside))


def _documents(uri: str) -> Source:
    found = find_files(uri, DOCUMENTS, (".",), passages=True)
    check_found(uri, found, DOCUMENTS, "of text")
    return Source(uri, [SourceFile(file, True) for file in found.files], len(found.beside))
