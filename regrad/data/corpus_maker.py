"""Making a corpus: records and documents from anywhere become passages of one length, each once, with a card."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import IO

from pydantic import Field
from tokenizers import Tokenizer

from regrad.data.chunks import ChunkConfig, Chunker
from regrad.data.corpora import read_raw
from regrad.data.documents import DOCUMENTS, directory_of, find_documents, name_in, read_document
from regrad.data.files import CorpusFile, compression, corpus_files
from regrad.data.jsonl import encode_jsonl, read_jsonl
from regrad.data.passages import Passage, encode_passages
from regrad.errors import CorpusError
from regrad.settings import Location
from regrad.storage import check_replaceable, directory_writer
from regrad.text import counted

CARD = "card.json"
PASSAGES = "corpus.jsonl"
REJECTED = "rejected.jsonl"
_FORMAT = 1
_EVERY_SECONDS = 10.0
_BEIR = ("corpus.jsonl", "queries.jsonl")


class CorpusConfig(ChunkConfig):
    """`regrad corpus`: what is read, and how it is cut."""

    sources: tuple[Location, ...] = Field(min_length=1, description="files, directories and globs, on any storage URI")
    output: Location = Field(description="a directory: corpus.jsonl, rejected.jsonl and card.json")
    tokenizer: str | None = Field(
        None, description="a model's directory or hub name, or a tokenizer.json; null: a token is a word"
    )
    strict: bool = Field(False, description="stop at the first record or file that cannot be used")


@dataclass(frozen=True)
class Rejected:
    """A file or a record that gave no passage, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Source:
    """One of a corpus's sources: its files, which are documents or hold records."""

    uri: str
    files: list[CorpusFile]
    are_documents: bool

    @property
    def directory(self) -> str:
        """Where the files are from."""
        return directory_of(self.uri, self.files[0].uri)


class CorpusMaker:
    """Writes `config.output`, whole or not at all; `say` hears how far it is.

    Documents are cut between sentences. A record that is short enough is kept as it is, a longer one is cut into pieces
    whose ids are its own with `#1`, `#2`, ... What says the same again is left out: of records title and text, of
    documents the text. The corpus is streamed; kept in memory are two hashes of 16 bytes for each passage.
    """

    def __init__(self, config: CorpusConfig, tokenizer: Tokenizer | None, say: Callable[[str], None]) -> None:
        self._config = config
        self._chunker = Chunker(tokenizer, config.max_tokens)
        self._say = say
        self._counts: Counter[str] = Counter()
        self._texts: set[bytes] = set()
        self._ids: set[bytes] = set()
        self._above = ""  # the directory from which documents are named: the one that all sources are in
        self._first = ""  # what was wrong with the first that was rejected
        self._said = time.monotonic()

    def run(self) -> str:
        """Make it; returns one line. Raises `CorpusError` if nothing can be used, or, if strict, at the first fault."""
        config = self._config
        check_replaceable(config.output, CARD)
        sources = [find_source(uri) for uri in config.sources]  # a wrong path stops before hours of work
        self._above = _shared([source.directory for source in sources])
        with directory_writer(config.output, CARD) as folder:
            with open(folder / PASSAGES, "wb") as passages, open(folder / REJECTED, "wb") as rejected:
                for source in sources:
                    for file in source.files:
                        self._take(source, file, passages, rejected)
            if not self._counts["passages"]:
                text = f"{', '.join(config.sources)}: no passage can be made of it"
                raise CorpusError(f"{text}; {self._first or 'it is empty'}", code="empty", uri=config.sources[0])
            self._write_card(folder)
        return f"corpus at {config.output}: {self._summary()}"

    def _take(self, source: Source, file: CorpusFile, passages: IO[bytes], rejected: IO[bytes]) -> None:
        """What one file gives goes into one of both files."""
        self._counts["files"] += 1
        for one in self._document(file) if source.are_documents else self._records(file):
            found = self._once(one, file, source.are_documents) if isinstance(one, Passage) else one
            if isinstance(found, Passage):
                self._counts["passages"] += 1
                passages.write(encode_passages([found]))
            elif found is not None:
                if self._config.strict:
                    raise CorpusError(f"{found.where}: {found.reason}", code="rejected", where=found.where)
                self._first = self._first or f"{found.where}: {found.reason}"
                self._counts["rejected"] += 1
                rejected.write(encode_jsonl([asdict(found)]))
            if time.monotonic() - self._said > _EVERY_SECONDS:
                self._said = time.monotonic()
                self._say(f"{file.uri}: {self._summary()}")

    def _document(self, file: CorpusFile) -> Iterator[Passage | Rejected]:
        name = name_in(self._above, file.uri)
        empty = True
        try:
            for document in read_document(name, file.uri):
                for passage in self._chunker.document(document):
                    empty = False
                    yield passage
        except CorpusError as error:
            yield Rejected(file.uri, str(error))
            return
        if empty:
            yield Rejected(file.uri, "it has no words")

    def _records(self, file: CorpusFile) -> Iterator[Passage | Rejected]:
        try:
            for line in read_raw(file.uri):
                try:
                    pieces = self._chunker.record(Passage.from_record(line.decode(), line.where))
                except CorpusError as error:
                    yield Rejected(line.where, str(error).removeprefix(line.where).lstrip(": "))
                    continue
                self._counts["records"] += 1
                self._counts["cut"] += len(pieces) > 1
                if not any(any(map(str.isalnum, piece.text)) for piece in pieces):
                    yield Rejected(line.where, "its text has no words")
                    continue
                yield from pieces
        except CorpusError as error:  # the file, from here on
            yield Rejected(file.uri, str(error))

    def _once(self, passage: Passage, file: CorpusFile, by_text: bool) -> Passage | Rejected | None:
        """The passage, unless its words were there before; rejected if only its id was."""
        text = _hash(passage.text if by_text else f"{passage.title}\x00{passage.text}")
        if text in self._texts:
            self._counts["repeated"] += 1
            return None
        identifier = _hash(passage.id)
        if identifier in self._ids:
            return Rejected(file.uri, f"id {passage.id!r:.80} was already used for another text")
        self._texts.add(text)
        self._ids.add(identifier)
        return passage

    def _summary(self) -> str:
        counts = self._counts
        parts = [f"{counted(counts['passages'], 'passage')} of {counted(counts['files'], 'file')}"]
        if counts["cut"]:
            parts.append(f"{counted(counts['cut'], 'long record')} cut")
        if counts["repeated"]:
            parts.append(f"{counts['repeated']:,} left out that repeat another")
        if counts["rejected"]:
            parts.append(f"{counts['rejected']:,} rejected ({REJECTED} says why)")
        return ", ".join(parts)

    def _write_card(self, folder: Path) -> None:
        config = self._config
        settings = config.model_dump(mode="json", include={"sources", "tokenizer", "max_tokens"})
        names = ("files", "records", "passages", "cut", "repeated", "rejected")
        card = {"format": _FORMAT, **settings, **{name: self._counts[name] for name in names}}
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")


def find_source(uri: str) -> Source:
    """The files with records there, or, if there are none, the documents; of a BEIR data set its corpus alone.

    Raises `CorpusError` if there is neither.
    """
    plain = uri.lower().removesuffix(compression(uri))
    if plain.endswith(DOCUMENTS):
        return Source(uri, find_documents(uri), True)
    try:
        files = corpus_files(uri)
    except CorpusError as error:
        if error.code != "corpus.no_file":
            raise
        return Source(uri, find_documents(uri), True)
    return Source(uri, _without_queries(uri, files), False)


def _without_queries(uri: str, files: list[CorpusFile]) -> list[CorpusFile]:
    directory = directory_of(uri, files[0].uri)
    names = {_unpacked(name_in(directory, file.uri)): file for file in files}
    if names.keys() >= set(_BEIR):
        return [file for name, file in names.items() if name == _BEIR[0]]
    return files


def _shared(directories: Sequence[str]) -> str:
    """The innermost directory that all of these are in; empty if there is none: one may be local and one in a store."""
    levels = zip(*(directory.split("/") for directory in directories), strict=False)
    return "/".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))


def _unpacked(name: str) -> str:
    return name.lower().removesuffix(compression(name))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def read_rejected(uri: str) -> list[Rejected]:
    """What was left out of the corpus at `uri`, and why."""
    return [Rejected(record["where"], record["reason"]) for _, record in read_jsonl(f"{uri}/{REJECTED}")]
