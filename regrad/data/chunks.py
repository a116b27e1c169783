"""Documents and long records cut into passages: between sentences, each with the place that it is from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from pydantic import Field
from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit

from regrad.data.documents import CHARACTER, LINE, PAGE, Document, check_text
from regrad.data.passages import Passage
from regrad.settings import Settings

_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
_FENCED = re.compile(r"^(`{3,}|~{3,}).*?(^\1|\Z)", re.MULTILINE | re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
# The long vowel of kana is of no script.
_WITHOUT_SPACES = (
    r"\p{Han}\p{Bopomofo}\p{Hiragana}\p{Katakana}\u30FC\uFF70\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
)


class ChunkConfig(Settings):
    """How texts are cut into passages."""

    max_tokens: int = Field(200, ge=16, description="the longest passage, in tokens")


class TextPiece(NamedTuple):
    """A passage, and which characters of the text that was cut it is: from `start` to before `end`."""

    passage: Passage
    start: int
    end: int


class Chunker:
    """Cuts texts into pieces of at most `max_tokens` tokens of a tokenizer; without one a token is a word."""

    def __init__(self, tokenizer: Tokenizer | None, max_tokens: int) -> None:
        self._tokenizer = _words() if tokenizer is None else _counting(tokenizer)
        self._most = max_tokens
        self._plain, self._marked = (
            kind.from_huggingface_tokenizer(self._tokenizer, max_tokens) for kind in (TextSplitter, MarkdownSplitter)
        )

    def document(self, document: Document) -> Iterator[TextPiece]:
        """Those pieces that have words.

        The id is the document's name and the place (`march.md:12`, `report.pdf:p3`; `page.html:2` is the second piece),
        with a number more from the second piece that begins there. The title is the document's, with the nearest
        heading.
        """
        headings = _Headings(document)
        ids: dict[str, int] = {}
        splitter = self._marked if document.is_markdown else self._plain
        for start, chunk in splitter.chunk_indices(document.text):
            if not _has_words(chunk) or start + len(chunk) <= headings.begin:
                continue
            end = start + len(chunk)
            first, _ = document.span(start, end)
            where = {LINE: str(first), PAGE: f"p{first}", CHARACTER: str(len(ids) + 1)}[document.unit]
            place = f"{document.name}:{where}"
            ids[place] = ids.get(place, 0) + 1
            identifier = place if ids[place] == 1 else f"{place}.{ids[place]}"
            yield TextPiece(Passage(identifier, headings.title(start), chunk), start, end)

    def record(self, passage: Passage) -> list[TextPiece]:
        """The passage itself if it is short enough, else its pieces: their ids are its own with `#1`, `#2`, ...

        Raises `CorpusError` if the text is none.
        """
        check_text(passage.text)
        if self._is_short(passage.text):
            return [TextPiece(passage, 0, len(passage.text))]
        chunks = [(start, chunk) for start, chunk in self._plain.chunk_indices(passage.text) if _has_words(chunk)]
        return [
            TextPiece(replace(passage, id=f"{passage.id}#{n}", text=chunk), start, start + len(chunk))
            for n, (start, chunk) in enumerate(chunks, start=1)
        ]

    def _is_short(self, text: str) -> bool:
        if len(text) < self._most and text.isascii():  # a token is a character or more, but for one at the start
            return True
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids) <= self._most


def _counting(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that counts all tokens: an encoder's own cuts every text at its longest input."""
    copy: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _words() -> Tokenizer:
    """A token for each word, and for each sign of a script without spaces between words, with its marks."""
    words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    signs = Split(Regex(rf"[{_WITHOUT_SPACES}]\p{{M}}*"), "isolated")
    words.pre_tokenizer = Sequence([WhitespaceSplit(), signs])
    return words


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)


class _Headings:
    """A document's titles by position; only Markdown, and what became Markdown, has any beside its own."""

    def __init__(self, document: Document) -> None:
        text = document.text if document.is_markdown else ""
        fenced = [match.span() for match in _FENCED.finditer(text)]
        self._found = [
            (match.start(), match[1])
            for match in _HEADING.finditer(text)
            if not any(start <= match.start() < end for start, end in fenced)
        ]
        own = document.unit != CHARACTER and self._found  # of an HTML page its <title> counts
        self._document = self._found[0][1] if own else document.title
        match = _FRONT_MATTER.match(text)
        self.begin = match.end() if match else 0

    def title(self, start: int) -> str:
        above = [title for at, title in self._found if at <= start]
        section = above[-1] if above else self._document
        return self._document if section == self._document else f"{self._document}: {section}"
