"""Text, Markdown, HTML and PDF files: found below a directory and read as text whose places have names."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from regrad.data.compression import compression, unpacked
from regrad.data.files import IS_UTF_16, UTF_16, read_whole
from regrad.errors import CorpusError
from regrad.text import counted

MARKDOWN = (".md", ".markdown", ".mdown")
HTML = (".html", ".htm", ".xhtml")
PDF = (".pdf",)
DOCUMENTS = (".txt", ".text", ".rst", *MARKDOWN, *HTML, *PDF)
_MOST_BYTES = 32 * 1024 * 1024
# More of these in a row are not text (base64, minified code), and slow to cut. Scripts without spaces have other signs.
_LONGEST_WORD = 2000
_NO_WORD = re.compile(r"[!-~]{%d,}" % _LONGEST_WORD)  # noqa: UP031
_NO_TEXT_OF_A_PAGE = ("script", "style", "noscript", "template", "nav", "head")
_INSTALL = "reading {} needs another library: pip install 'regrad[documents]'"


LINE, PAGE, CHARACTER = "line", "page", "character"


@dataclass(frozen=True)
class Document:
    """What a file says, or a page of it. `unit` is what its places are counted in: of HTML only characters are left."""

    name: str
    title: str
    text: str
    is_markdown: bool = False
    unit: str = LINE
    page: int = 0

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The first and the last unit, from 1, of the characters from `start` to before `end`."""
        if self.unit == PAGE:
            return self.page, self.page
        if self.unit == CHARACTER:
            return start + 1, end
        first = self.text.count("\n", 0, start) + 1
        return first, first + self.text.count("\n", start, end)

    def wordless(self, uri: str) -> tuple[str, str]:
        """Where there is nothing to read, and what is wrong there."""
        if self.unit != PAGE:
            return uri, "it has no words"
        scanned = "it has no text layer (blank, or scanned?); run OCR on the file, for example ocrmypdf"
        return f"{uri} page {self.page}", "it has no words" if self.text.strip() else scanned


def unit_of(uri: str) -> str:
    """What the places of a document are counted in, as its name says."""
    plain = unpacked(uri)
    return PAGE if plain.endswith(PDF) else CHARACTER if plain.endswith(HTML) else LINE


def directory_of(uri: str, file: str) -> str:
    """Where a file was looked for: the place itself, the directory of the file that it is, or that of its pattern."""
    above = uri.rstrip("/") if file != uri else uri.rpartition("/")[0]
    return above if file.startswith(f"{above}/") else re.split(r"[*?[]", uri)[0].rpartition("/")[0]


def name_in(directory: str, file: str) -> str:
    """A file's path from a directory."""
    return file.removeprefix(directory).lstrip("/")


def read_document(name: str, uri: str) -> list[Document]:
    """One, or of a PDF file one a page, with those that have no text: no passage is of two, so that it can be cited.

    Raises `CorpusError` for what is not text, or is larger than a document should be; the error does not name the file.
    """
    data = read_whole(uri, _MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise CorpusError(f"it is larger than {_MOST_BYTES >> 20} MiB; cut it into several", code="file_too_large")
    plain = unpacked(uri)
    title = PurePosixPath(name.removesuffix(compression(name))).stem.replace("_", " ").replace("-", " ")
    if plain.endswith(PDF):
        return _pdf(name, title, data)
    if plain.endswith(HTML):
        return [_html(name, title, data)]
    text = _checked(_decoded(data))
    return [Document(name, title, text, plain.endswith(MARKDOWN))]


def _decoded(data: bytes) -> str:
    if data.startswith(UTF_16):
        raise CorpusError(f"it {IS_UTF_16}", code="not_utf8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CorpusError(f"line {line} is not UTF-8; write the file as UTF-8", code="not_utf8", line=line) from error


def check_text(text: str) -> None:
    """Raise `CorpusError` if this is not text."""
    if "\x00" in text:
        raise CorpusError("it holds NUL characters, so it is not text", code="not_text")
    if len(text) >= _LONGEST_WORD and (longest := _NO_WORD.search(text)):
        line = text.count("\n", 0, longest.start()) + 1
        raise CorpusError(
            f"line {line} has {len(longest[0]):,} characters without a space, so it is not text", code="not_text"
        )


def _checked(text: str) -> str:
    check_text(text)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _html(name: str, title: str, data: bytes) -> Document:
    """As Markdown, which keeps headings and lists. The encoding is the one that the page names."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of soupsieve, which is for selectors
            from bs4 import BeautifulSoup
            from markdownify import ATX, MarkdownConverter
    except ImportError as error:
        raise CorpusError(_INSTALL.format("HTML"), code="extra_missing") from error
    converter = MarkdownConverter(
        heading_style=ATX,
        strip=["a", "img", "b", "strong", "em", "i"],
        escape_underscores=False,
        escape_asterisks=False,
    )
    try:
        page = BeautifulSoup(data, "html.parser")
        heading = page.title.get_text(" ", strip=True) if page.title else ""
        for part in page(_NO_TEXT_OF_A_PAGE):
            part.decompose()
        text = converter.convert_soup(page)
    except Exception as error:  # as of a PDF file
        reason = "its elements are nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CorpusError(f"it cannot be read as HTML: {reason}", code="damaged") from error
    return Document(name, heading or title, _checked(text), is_markdown=True, unit=CHARACTER)


def _pdf(name: str, title: str, data: bytes) -> list[Document]:
    """Its text layer, page by page."""
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise CorpusError(_INSTALL.format("PDF"), code="extra_missing") from error
    try:
        file = PdfReader(io.BytesIO(data))
        if file.is_encrypted and not file.decrypt(""):
            raise CorpusError("it is encrypted; save it without a password", code="encrypted")
        heading = (file.metadata.title if file.metadata else None) or ""
        pages = list(_within(page.extract_text() for page in file.pages))
    except CorpusError:
        raise
    except Exception as error:  # what a damaged file does to a parser is not limited to the parser's own errors
        raise CorpusError(f"it cannot be read as PDF: {error}", code="damaged") from error
    if not any(any(map(str.isalnum, page)) for page in pages):
        text = f"its {counted(len(pages), 'page')} have no text layer (scanned?); run OCR first, for example ocrmypdf"
        raise CorpusError(text, code="no_text_layer")
    title = str(heading).strip() or title
    return [Document(name, title, _checked(page), unit=PAGE, page=number) for number, page in enumerate(pages, start=1)]


def _within(pages: Iterator[str]) -> Iterator[str]:
    """The pages, as long as they are not more than a document: a small file can unpack to any size."""
    size = 0
    for page in pages:
        size += len(page)
        if size > _MOST_BYTES:
            raise CorpusError(f"its text is longer than {_MOST_BYTES >> 20} MiB", code="file_too_large")
        yield page.replace("\x00", "")
