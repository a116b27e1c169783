"""A folder of text and Markdown files as passages: read file by file, cut at sentences, cited by file and line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field
from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer

from regrad.data.files import IS_UTF_16, UTF_16
from regrad.data.passages import Passage
from regrad.errors import CorpusError
from regrad.settings import Settings
from regrad.text import listed

MARKDOWN = (".md", ".markdown", ".mdown")
DOCUMENTS = (".txt", ".text", ".rst", *MARKDOWN)
_MOST_BYTES = 32 * 1024 * 1024
# A sign more than this without a space is no text (base64, minified code), and slow to cut.
_LONGEST_WORD = 2000
_SHOWN = 3
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
_FENCED = re.compile(r"^(`{3,}|~{3,}).*?(^\1|\Z)", re.MULTILINE | re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


class ChunkConfig(Settings):
    """How documents are cut into passages."""

    max_tokens: int = Field(200, ge=16, description="the longest passage, in tokens of the base model")


@dataclass
class Reading:
    """What a folder gave: passages, how many files they are from, and which files were left out and why."""

    passages: list[Passage] = field(default_factory=list)
    files: int = 0
    repeated: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def read_documents(folder: str, tokenizer: Tokenizer, config: ChunkConfig) -> Reading:
    """The passages of every text and Markdown file below `folder`, in the order of their paths.

    A passage's id is its file's path in the folder and the line that it begins at (`notes/march.md:12`), its title the
    document's with the nearest heading. A text that was there before is left out. Raises `CorpusError` if there is no
    such folder, or nothing in it that can be read; a file that cannot be is in `left_out`.
    """
    reading = Reading()
    seen: set[str] = set()
    plain, marked = (
        kind.from_huggingface_tokenizer(tokenizer, config.max_tokens) for kind in (TextSplitter, MarkdownSplitter)
    )
    for path in find_documents(folder):
        name = path.relative_to(folder).as_posix()
        try:
            text = _text(path)
        except OSError as error:
            reading.left_out[name] = error.strerror or str(error)
            continue
        except CorpusError as error:
            reading.left_out[name] = str(error)
            continue
        is_markdown = path.suffix.lower() in MARKDOWN
        splitter = marked if is_markdown else plain
        found = list(_passages(name, text, splitter.chunk_indices(text), is_markdown))
        reading.files += bool(found)
        if not found:
            reading.left_out[name] = "it has no words"
        for passage in found:
            reading.repeated += passage.text in seen
            if passage.text not in seen:
                seen.add(passage.text)
                reading.passages.append(passage)
    if not reading.passages:
        raise _nothing(folder, reading)
    return reading


def find_documents(folder: str) -> list[Path]:
    """Text and Markdown files below `folder`. Hidden ones are left out, and links to folders are not followed.

    Raises `CorpusError` if there are none.
    """
    if not Path(folder).is_dir():
        what = "is a file" if Path(folder).exists() else "does not exist"
        raise CorpusError(f"{folder} {what}; give a folder of text or Markdown files", code="no_folder", path=folder)
    if not (found := list(_files(folder))):
        raise _nothing(folder, Reading())
    return found


def _files(folder: str) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(DOCUMENTS) and not name.startswith("."):
                yield Path(place, name)


def _text(path: Path) -> str:
    """Raises `CorpusError` for what is no text, or more than one document should be."""
    if path.stat().st_size > _MOST_BYTES:
        raise CorpusError(f"it is larger than {_MOST_BYTES >> 20} MiB; cut it into several", code="file_too_large")
    if not path.is_file():
        raise CorpusError("it is no file", code="no_file")
    data = path.read_bytes()
    if data.startswith(UTF_16):
        raise CorpusError(f"it {IS_UTF_16}", code="not_utf8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CorpusError(f"line {line} is not UTF-8; write the file as UTF-8", code="not_utf8", line=line) from error
    if "\x00" in text:
        raise CorpusError("it holds NUL characters, so it is no text", code="not_text")
    if longest := next((word for word in re.finditer(r"\S{%d,}" % _LONGEST_WORD, text)), None):  # noqa: UP031
        line = text.count("\n", 0, longest.start()) + 1
        raise CorpusError(
            f"line {line} has {len(longest[0]):,} characters without a space, so it is no text", code="not_text"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _passages(name: str, text: str, chunks: list[tuple[int, str]], is_markdown: bool) -> Iterator[Passage]:
    """The chunks that have words, with their places; two that begin on one line are told apart by a number."""
    fenced = [match.span() for match in _FENCED.finditer(text)] if is_markdown else []
    headings = [
        (match.start(), match[1])
        for match in (_HEADING.finditer(text) if is_markdown else ())
        if not any(start <= match.start() < end for start, end in fenced)
    ]
    document = headings[0][1] if headings else Path(name).stem.replace("_", " ").replace("-", " ")
    front = match.end() if is_markdown and (match := _FRONT_MATTER.match(text)) else 0
    ids: dict[str, int] = {}
    for start, chunk in chunks:
        if not any(character.isalnum() for character in chunk) or start + len(chunk) <= front:
            continue
        line = text.count("\n", 0, start) + 1
        place = f"{name}:{line}"
        ids[place] = ids.get(place, 0) + 1
        identifier = place if ids[place] == 1 else f"{place}.{ids[place]}"
        above = [title for at, title in headings if at <= start]
        section = above[-1] if above else document
        yield Passage(identifier, document if section == document else f"{document}: {section}", chunk)


def _nothing(folder: str, reading: Reading) -> CorpusError:
    why = (
        f" ({listed([f'{name}: {reason}' for name, reason in reading.left_out.items()], _SHOWN)})"
        if reading.left_out
        else ""
    )
    return CorpusError(
        f"{folder} has no text that can be read{why}; text is in files that end in {', '.join(DOCUMENTS)}",
        code="no_documents",
        path=folder,
        left_out=len(reading.left_out),
    )
