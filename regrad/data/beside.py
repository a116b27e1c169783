"""What stands beside a corpus and holds no passages: a BEIR data set's questions, and what `regrad corpus` tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from regrad.data.compression import unpacked

_CORPUS = "corpus.jsonl"
_QUESTIONS = "queries.jsonl"
_JUDGEMENTS = "qrels"
_CARD = "card.json"
_OF_CARD = (_CARD, "rejected.jsonl", "sources.jsonl")


def without_passages(paths: Iterable[str], more: Callable[[str], Iterable[str]] | None = None) -> set[str]:
    """Those of the paths that hold no passages, although their endings may say so.

    In a directory with `corpus.jsonl`, compressed or not, these are `queries.jsonl` and all below `qrels/`; with
    `card.json` as well, also that, `rejected.jsonl` and `sources.jsonl`. Where the paths may be a part of what is
    there, as a glob's are, `more` gives all of a directory's files.
    """
    listed = list(paths)
    names: dict[str, set[str]] = {}
    for path in listed:
        directory, name = _parted(path)
        names.setdefault(directory, set()).add(name)

    def beside(directory: str) -> set[str]:
        found = names.setdefault(directory, set())
        if more and _CORPUS not in found:
            found.update(_parted(path)[1] for path in more(directory))
        return found

    return {path for path in listed if any(_is_beside(name, beside(directory)) for directory, name in _places(path))}


def _is_beside(name: str, names: set[str]) -> bool:
    if _CORPUS not in names:
        return False
    return name in (_QUESTIONS, _JUDGEMENTS) or (name in _OF_CARD and _CARD in names)


def _places(path: str) -> Iterator[tuple[str, str]]:
    """Directory and name of the file, if it may be such a one, and of each directory `qrels` that it is in."""
    directory, name = _parted(path)
    if name in (_QUESTIONS, *_OF_CARD):
        yield directory, name
    while directory:
        directory, _, name = directory.rpartition("/")
        if name == _JUDGEMENTS:
            yield directory, name


def _parted(path: str) -> tuple[str, str]:
    directory, _, name = path.rpartition("/")
    return directory, unpacked(name.lower())
