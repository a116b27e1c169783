"""Making a corpus: records and documents from anywhere become passages of one length, each once, with a card."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate, takewhile
from pathlib import Path

from pydantic import Field
from tokenizers import Tokenizer

from regrad.data.chunks import ChunkConfig, Chunker
from regrad.data.corpus_parts import CorpusParts, Reached
from regrad.data.documents import name_in, read_document
from regrad.data.jsonl import RawLine, encode_jsonl, read_jsonl
from regrad.data.passage_sources import SOURCES, PassageOrigin
from regrad.data.passages import Passage, encode_passages
from regrad.data.sources import SourceFile, find_source
from regrad.errors import CorpusError
from regrad.locking import exclusive
from regrad.settings import Location
from regrad.storage import Storage, check_replaceable, directory_writer
from regrad.text import counted

CARD = "card.json"
PASSAGES = "corpus.jsonl"
REJECTED = "rejected.jsonl"
_JOINED = (PASSAGES, SOURCES, REJECTED)
_FORMAT = 2
_EVERY_SECONDS = 10.0
_HASH_BYTES = 16
_PLACE_BYTES = 10
_LINES = 1 << 48  # more than a file has; what is above them is the number of the file
_PACKAGES = ("regrad", "semantic-text-splitter", "tokenizers", "beautifulsoup4", "markdownify", "pypdf")


class CorpusConfig(ChunkConfig):
    """`regrad corpus`: what is read, and how it is cut."""

    sources: tuple[Location, ...] = Field(min_length=1, description="files, directories and globs, on any storage URI")
    output: Location = Field(description="a directory: corpus.jsonl, sources.jsonl, rejected.jsonl and card.json")
    tokenizer: str | None = Field(
        None, description="a model's directory or hub name, or a tokenizer.json; null: a token is a word"
    )
    strict: bool = Field(False, description="stop at the first record or file that cannot be used")


@dataclass(frozen=True)
class RejectedFile:
    """A file, or a record or a page of one, that gave no passage, and why."""

    where: str
    reason: str


_Found = tuple[Passage, PassageOrigin] | RejectedFile
"""What a file gives."""


class CorpusMaker:
    """Writes `config.output`, whole or not at all; `say` hears how far it is.

    Documents are cut between sentences. A record that is short enough is kept as it is, a longer one is cut into pieces
    whose ids are its own with `#1`, `#2`, ... What says the same again is left out: of records title and text, of
    documents the text. The corpus is streamed; kept in memory are two hashes of 16 bytes for each passage, and its
    place. Stopped at any point, it goes on where the last run was (`regrad.data.corpus_parts`), to the same bytes.
    """

    def __init__(self, config: CorpusConfig, tokenizer: Tokenizer | None, say: Callable[[str], None]) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._chunker = Chunker(tokenizer, config.max_tokens)
        self._say = say
        self._counts: Counter[str] = Counter()
        self._texts: set[bytes] = set()
        self._ids: dict[bytes, int] = {}  # and where each is from
        self._files: list[SourceFile] = []
        self._above = ""  # the directory from which documents are named: the one that all sources are in
        self._first = ""  # what was wrong with the first that was rejected
        self._said = time.monotonic()
        self._read_bytes = 0

    def run(self) -> str:
        """Make it; returns one line.

        Raises `CorpusError` if nothing can be used, if another run is writing to the same output or, if strict, at the
        first fault.
        """
        config = self._config
        check_replaceable(config.output, CARD)
        sources = [find_source(uri) for uri in config.sources]  # a wrong path stops before hours of work
        self._above = _shared([source.directory for source in sources])
        self._files = files = [file for source in sources for file in source.files]
        with exclusive(Storage(config.output), self._busy):
            parts = CorpusParts(config.output, self._keys(files))
            reached = self._go_on(parts)
            self._counts["left_out"] = sum(source.left_out for source in sources)
            self._take_all(reached, parts)
            if not self._counts["passages"]:
                parts.remove()
                text = f"{', '.join(config.sources)}: no passage can be made of it"
                raise CorpusError(f"{text}; {self._first or 'it is empty'}", code="empty", uri=config.sources[0])
            with directory_writer(config.output, CARD, parts.uri) as folder:
                with ExitStack() as stack:
                    parts.join(*(stack.enter_context(open(folder / name, "wb")) for name in _JOINED))
                self._write_card(folder)
            parts.remove()
        return f"corpus at {config.output}: {self._summary()}"

    def _busy(self, holder: str) -> CorpusError:
        uri = self._config.output
        return CorpusError(
            f"another run is writing the corpus at {uri}; wait for it, or choose another output (it is {holder})",
            code="busy",
            uri=uri,
        )

    def _keys(self, files: Sequence[SourceFile]) -> list[str]:
        """Of all that the passages of the first 0, 1, 2, ... files depend on."""
        tokenizer = self._tokenizer.to_str() if self._tokenizer else ""
        settings = _key(_FORMAT, self._config.max_tokens, tokenizer, self._above, _software())
        return list(accumulate(files, _key, initial=settings))

    def _go_on(self, parts: CorpusParts) -> Reached:
        """How far an earlier run was, as far as that is still valid; from there this one goes on."""
        reached = Reached()
        for part, hashes in parts.valid(self._config.strict):
            reached = part
            for start in range(0, len(hashes), 2 * _HASH_BYTES + _PLACE_BYTES):
                middle, end = start + _HASH_BYTES, start + 2 * _HASH_BYTES
                self._texts.add(hashes[start:middle])
                self._ids[hashes[middle:end]] = int.from_bytes(hashes[end : end + _PLACE_BYTES])
        self._counts, self._first = Counter(reached.counts), reached.first
        if others := parts.discard_others():
            self._say(f"settings or files have changed: {counted(others, 'part')} of an earlier run will be made again")
        if reached.files or reached.items:
            self._say(f"going on after {self._summary()}, made by an earlier run")
        return reached

    def _take_all(self, reached: Reached, parts: CorpusParts) -> None:
        """What the files give, but for what an earlier run has taken, goes into parts."""
        files = self._files
        before = list(accumulate((source.file.bytes for source in files), initial=0))
        for number in range(reached.files, len(files)):
            source = files[number]
            done = reached.items if number == reached.files else 0
            self._counts["files"] += not done
            self._read_bytes = before[number]
            for items, found in enumerate(self._items(source, done), start=1):
                for one in found:
                    self._take(one, number, parts)
                if items > done and parts.full:
                    parts.write(self._reached(number, items))
                if time.monotonic() - self._said > _EVERY_SECONDS:
                    self._said = time.monotonic()
                    self._say(f"{self._read_bytes / max(1, before[-1]):.0%}, {source.uri}: {self._summary()}")
        if reached.files < len(files):
            parts.write(self._reached(len(files), 0))

    def _reached(self, files: int, items: int) -> Reached:
        return Reached(files=files, items=items, counts=dict(self._counts), first=self._first)

    def _items(self, source: SourceFile, done: int) -> Iterator[Iterable[_Found]]:
        """What each record of a file gives, or the document that it is; of the first `done` of them nothing."""
        name = name_in(self._above, source.uri)
        if source.is_document:
            yield self._document(name, source.uri) if not done else ()
            return
        number = 0
        try:
            for number, line in enumerate(source.records(), start=1):
                self._read_bytes += line.read_bytes
                yield self._record(name, line) if number > done else ()
        except CorpusError as error:  # the file, from here on
            yield [RejectedFile(source.uri, str(error))] if number >= done else ()

    def _document(self, name: str, uri: str) -> Iterator[_Found]:
        try:
            for document in read_document(name, uri):
                empty = True
                for passage, start, end in self._chunker.document(document):
                    empty = False
                    span = document.span(start, end)
                    yield passage, PassageOrigin(passage.id, name, document.unit, *span, start, end)
                if empty:
                    yield RejectedFile(*document.wordless(uri))
        except CorpusError as error:
            yield RejectedFile(uri, str(error))

    def _record(self, name: str, line: RawLine) -> Sequence[_Found]:
        try:
            pieces = self._chunker.record(Passage.from_record(line.decode(), line.where))
        except CorpusError as error:
            return [RejectedFile(line.where, str(error).removeprefix(line.where).lstrip(": "))]
        self._counts["records"] += 1
        self._counts["cut"] += len(pieces) > 1
        if not any(any(map(str.isalnum, piece.passage.text)) for piece in pieces):
            return [RejectedFile(line.where, "its text has no words")]
        return [
            (passage, PassageOrigin(passage.id, name, line.unit, line.number, line.last, start, end))
            for passage, start, end in pieces
        ]

    def _take(self, one: _Found, number: int, parts: CorpusParts) -> None:
        """A passage goes into the corpus unless its words were there before; if only its id was, it is rejected."""
        if isinstance(one, RejectedFile):
            self._reject(one, parts)
            return
        passage, place = one
        file = self._files[number]
        text = _hash(passage.text if file.is_document else f"{passage.title}\x00{passage.text}")
        identifier = _hash(passage.id)
        if text in self._texts:
            self._counts["repeated"] += 1
        elif identifier in self._ids:
            first, line = divmod(self._ids[identifier], _LINES)
            reason = f"id {passage.id!r:.80} was already used for another text, at {self._files[first].where(line)}"
            self._reject(RejectedFile(file.where(place.first), reason), parts)
        else:
            self._texts.add(text)
            self._ids[identifier] = at = number * _LINES + place.first
            self._counts["passages"] += 1
            hashes = text + identifier + at.to_bytes(_PLACE_BYTES)
            parts.add(encode_passages([passage]), place.encoded(), hashes)

    def _reject(self, one: RejectedFile, parts: CorpusParts) -> None:
        if self._config.strict:
            raise CorpusError(f"{one.where}: {one.reason}", code="rejected", where=one.where)
        self._first = self._first or f"{one.where}: {one.reason}"
        self._counts["rejected"] += 1
        parts.reject(encode_jsonl([asdict(one)]))

    def _summary(self) -> str:
        counts = self._counts
        parts = [f"{counted(counts['passages'], 'passage')} of {counted(counts['files'], 'file')}"]
        if counts["cut"]:
            parts.append(f"{counted(counts['cut'], 'long record')} cut")
        if counts["repeated"]:
            parts.append(f"{counts['repeated']:,} left out that repeat another")
        if counts["left_out"]:
            parts.append(f"{counted(counts['left_out'], 'file')} left out (their names or endings are of no passages)")
        if counts["rejected"]:
            parts.append(f"{counts['rejected']:,} rejected ({REJECTED} says why)")
        return ", ".join(parts)

    def _write_card(self, folder: Path) -> None:
        config = self._config
        settings = config.model_dump(mode="json", include={"sources", "tokenizer", "max_tokens"})
        names = ("files", "records", "passages", "cut", "repeated", "left_out", "rejected")
        card = {"format": _FORMAT, **settings, **{name: self._counts[name] for name in names}}
        Storage(folder).write(CARD, (json.dumps(card, indent=2) + "\n").encode())


def _shared(directories: Sequence[str]) -> str:
    """The innermost directory that all of these are in; empty if there is none: one may be local and one in a store."""
    levels = zip(*(directory.split("/") for directory in directories), strict=False)
    return "/".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).digest()


def _key(*values: object) -> str:
    return _hash(repr(values)).hex()


def _software() -> dict[str, str]:
    """The versions of what reads and cuts texts; the readers of HTML and PDF are an extra, and may come later."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def read_rejected(uri: str) -> list[RejectedFile]:
    """What was left out of the corpus at `uri`, and why."""
    return [RejectedFile(record["where"], record["reason"]) for _, record in read_jsonl(f"{uri}/{REJECTED}")]
