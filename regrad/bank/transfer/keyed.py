"""Atoms under somebody else's keys: which passage each belongs to, and the same passage stored twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regrad.bank.transfer.intake import BadAtom, Incoming
from regrad.corpus import Passage, read_records
from regrad.errors import BankError, CorpusError

_ROUNDING = 0.01
"""Two gradients of one passage, computed in half precision in other batches, differ by less than this of their norm."""


@dataclass(frozen=True)
class Keyed:
    """One atom of a foreign source: its key there, its passage if the key says so, and how it is read.

    `load` raises `BadAtom` if this one alone is bad.
    """

    key: str
    passage_id: str | None
    load: Callable[[], Tensor]


@dataclass(frozen=True)
class Named:
    """The passage that a key means; an empty hash is an unknown text."""

    passage_id: str
    text_hash: str = ""


@dataclass(frozen=True)
class Grouped:
    """The atoms of each passage, and how many atoms nobody asked for."""

    passages: list[tuple[Named, list[Keyed]]]
    left_out: int

    def incoming(self) -> Iterator[Incoming]:
        """One atom a passage; raises `BankError` if two that are stored for it differ by more than rounding."""
        for named, items in self.passages:
            yield _one(named, items)


def read_names(uri: str) -> dict[str, Named]:
    """A file of lines {key, id, and optionally title and text}: the passage that each key means.

    A key may be a list, as in [question, rank]. Raises `CorpusError` naming the line that is wrong or says otherwise
    than one before.
    """
    names: dict[str, Named] = {}
    hashes: dict[str, str] = {}
    for number, record in read_records(uri):
        where = f"{uri} line {number}"
        key, named = _parsed(record, where)
        if names.setdefault(key, named) != named:
            raise CorpusError(f"{where}: key {key!r:.80} is passage {names[key].passage_id!r:.80} in a line before")
        if hashes.setdefault(named.passage_id, named.text_hash) != named.text_hash:
            raise CorpusError(f"{where}: passage {named.passage_id!r:.80} has another text in a line before")
    return names


def group(items: Sequence[Keyed], names: Mapping[str, Named] | None, source: str) -> Grouped:
    """Put atoms together by passage: by `names`, leaving out keys that it has not, or by their keys if there is none.

    Raises `BankError` if the keys do not say the passage, or if `names` has none of them.
    """
    groups: dict[str, tuple[Named, list[Keyed]]] = {}
    left_out = 0
    for item in items:
        named = names.get(item.key) if names is not None else _by_key(item, source)
        if named is None:
            left_out += 1
        else:
            groups.setdefault(named.passage_id, (named, []))[1].append(item)
    if left_out and not groups:
        raise BankError(f"the file of ids has none of the keys of {source}, such as {[i.key for i in items[:3]]}")
    return Grouped(list(groups.values()), left_out)


def key_text(parts: Sequence[Any]) -> str:
    """A key of several parts, as (question, rank), in one string."""
    return "_".join(key_text(part) if isinstance(part, list | tuple) else str(part) for part in parts)


def _parsed(record: Any, where: str) -> tuple[str, Named]:
    key = record.get("key") if isinstance(record, dict) else None
    text = key_text(key) if isinstance(key, list) else key
    if not isinstance(text, str) or not text:
        raise CorpusError(f"{where}: an object with key (text or a list) and id is expected, found {record!r:.80}")
    passage = Passage.from_record({**record, "text": record.get("text", "")}, where)
    return text, Named(passage.id, passage.text_hash if "text" in record else "")


def _by_key(item: Keyed, source: str) -> Named:
    if item.passage_id is None:
        raise BankError(
            f"{source} is keyed by question and rank, as {item.key!r:.80}, not by passage: give a file of lines with "
            "key, id and, if you have them, title and text (--ids)"
        )
    return Named(item.passage_id)


def _one(named: Named, items: Sequence[Keyed]) -> Incoming:
    first: tuple[Keyed, Tensor] | None = None
    problem = ""
    for item in items:
        try:
            atom_P = item.load()
        except BadAtom as error:
            problem = problem or str(error)
            continue
        if first is None:
            first = item, atom_P
        elif (difference := _difference(first[1], atom_P)) > _ROUNDING:
            raise BankError(
                f"passage {named.passage_id!r:.80} is stored as {first[0].key!r:.80} and as {item.key!r:.80}, and the "
                f"two differ by {difference:.1%}: they are not of the same text and model; leave one out"
            )
    return Incoming(named.passage_id, named.text_hash, first[1] if first else None, problem)


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / torch.maximum(a.norm(), b.norm()).clamp_min(torch.finfo(a.dtype).tiny))
