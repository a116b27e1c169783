"""Importing the gradients that the ReGrad release saved, by question and rank, or by passage.

Such keys do not name passages, so a file of ids says which passage each key means; atoms that turn out to be of one
passage are one atom of the bank. PRAG's adapters, in `prag.py`, are grouped in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrad.bank.config import CodecName
from regrad.bank.io.tensors import flat_atom, subspace_names
from regrad.bank.io.transfer import BadAtom, Imported, Incoming, layout_for, local_source, read_tensors, take_in
from regrad.data.jsonl import read_jsonl
from regrad.data.passages import Passage
from regrad.errors import BankError, CorpusError, MetaInitError
from regrad.meta_init import read_card
from regrad.models.subspace import Subspace

_ROUNDING = 0.01
"""Two gradients of one passage, computed in half precision in other batches, differ by less than this of their norm."""


@dataclass(frozen=True)
class Keyed:
    """One atom of another tool's files: its key there, its passage if the key names it, and how it is read.

    `load` raises `BadAtom` if this one alone is bad.
    """

    key: str
    passage_id: str | None
    load: Callable[[], Tensor]


@dataclass(frozen=True)
class Named:
    """The passage that a key means; an empty hash stands for an unknown text."""

    passage_id: str
    text_hash: str = ""


@dataclass(frozen=True)
class Grouped:
    """The atoms of each passage, and how many atoms belong to no passage of the list of ids."""

    passages: list[tuple[Named, list[Keyed]]]
    left_out: int

    def incoming(self) -> Iterator[Incoming]:
        """One atom a passage; raises `BankError` if two for the same passage differ by more than rounding."""
        for named, items in self.passages:
            yield _one(named, items)


def read_names(uri: str) -> dict[str, Named]:
    """A file of lines {key, id, and optionally title and text}: the passage that each key means.

    A key may be a list, such as [question, rank]. Raises `CorpusError` naming a line that is wrong or contradicts an
    earlier one.
    """
    names: dict[str, Named] = {}
    hashes: dict[str, str] = {}
    for where, record in read_jsonl(uri):
        key, named = _parsed(record, where)
        if names.setdefault(key, named) != named:
            text = f"{where}: key {key!r:.80} is passage {names[key].passage_id!r:.80} in an earlier line"
            raise CorpusError(text, code="contradiction", where=where, key=key)
        if hashes.setdefault(named.passage_id, named.text_hash) != named.text_hash:
            text = f"{where}: passage {named.passage_id!r:.80} has another text in an earlier line"
            raise CorpusError(text, code="contradiction", where=where, passage_id=named.passage_id)
    return names


def group(items: Sequence[Keyed], names: Mapping[str, Named] | None, source: str) -> Grouped:
    """Atoms by passage: as `names` says, leaving out other keys, or without `names` by the keys themselves.

    Raises `BankError` if the keys do not name the passages, or if `names` has none of them.
    """
    groups: dict[str, tuple[Named, list[Keyed]]] = {}
    left_out = 0
    for item in items:
        if names is not None:
            named = names.get(item.key)
        elif item.passage_id is not None:
            named = Named(item.passage_id)
        else:
            raise BankError(
                f"{source} is keyed by question and rank, as {item.key!r:.80}, not by passage: give a file of lines "
                "with key, id and, if you have them, title and text (--ids)",
                code="not_keyed_by_passage",
                key=item.key,
            )
        if named is None:
            left_out += 1
        else:
            groups.setdefault(named.passage_id, (named, []))[1].append(item)
    if left_out and not groups:
        keys = [item.key for item in items[:3]]
        raise BankError(
            f"the file of ids has none of the keys of {source}, such as {keys}", code="no_known_key", keys=keys
        )
    return Grouped(list(groups.values()), left_out)


def key_text(parts: Sequence[Any]) -> str:
    """A key of several parts, such as (question, rank), as one string."""
    return "_".join(key_text(part) if isinstance(part, list | tuple) else str(part) for part in parts)


def _parsed(record: dict[str, Any], where: str) -> tuple[str, Named]:
    key = record.get("key")
    text = key_text(key) if isinstance(key, list) else key
    if not isinstance(text, str) or not text:
        problem = f"{where}: an object with key (text or a list) and id is expected, found {record!r:.80}"
        raise CorpusError(problem, code="wrong_field", where=where, field="key")
    passage = Passage.from_record({**record, "text": record.get("text", "")}, where)
    return text, Named(passage.id, passage.text_hash if "text" in record else "")


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
            continue
        size = torch.maximum(first[1].norm(), atom_P.norm()).clamp_min(torch.finfo(atom_P.dtype).tiny)
        difference = float((first[1] - atom_P).norm() / size)
        if difference > _ROUNDING:
            raise BankError(
                f"passage {named.passage_id!r:.80} is stored as {first[0].key!r:.80} and as {item.key!r:.80}, and the "
                f"two differ by {difference:.1%}: they are not of the same text and model; leave one out",
                code="atoms_differ",
                passage_id=named.passage_id,
                keys=[first[0].key, item.key],
            )
    return Incoming(named.passage_id, named.text_hash, first[1] if first else None, problem)


_QUESTION_AND_RANK = re.compile(r"\d+_\d+")
_DEPTH = 3

Place = tuple[Any, ...]
"""The keys and positions that lead to one atom inside a file."""


def import_release(
    source: str, uri: str, meta_init: str, ids: str | None = None, codec: CodecName | None = None
) -> Imported:
    """Add the gradients of a `.pt` file, or of all below a directory, at any URI, to a bank.

    `ids` is a file as `read_names` reads it; with a directory, its keys begin with the file's path without `.pt`. The
    MetaInit must be the one that the gradients were computed at: nothing in them can prove that, but names and shapes
    must fit. Raises `BankError` naming what does not fit; a gradient that is damaged or not finite is quarantined.
    """
    card = read_card(meta_init)
    if card.get("inner_steps", 1) != 1:
        raise MetaInitError(
            f"the MetaInit at {meta_init} was trained for several inner steps; such a MetaInit has no bank",
            code="several_inner_steps",
            uri=meta_init,
        )
    try:
        fingerprint, subspace = card["fingerprint"], Subspace.from_json(card["subspace"])
    except (KeyError, TypeError, ValueError) as error:
        raise MetaInitError(
            f"the MetaInit at {meta_init} is damaged: it names no subspace", code="damaged", uri=meta_init
        ) from error
    layout = layout_for(uri, "gradient", fingerprint, subspace, codec)
    with local_source(source) as local:
        items = list(_items(local.path, subspace))
        grouped = group(items, read_names(ids) if ids else None, source)
        return take_in(uri, layout, local.renamed(grouped.incoming()), grouped.left_out)


def _items(source: Path, subspace: Subspace) -> Iterator[Keyed]:
    """Every gradient of the source. Only keys are kept in memory: a file is read again when its turn comes."""
    files = sorted([*source.rglob("*.pt"), *source.rglob("*.pth")]) if source.is_dir() else [source]
    if not files:
        raise BankError(f"there is no .pt file below {source}", code="no_files", uri=str(source))
    opened = lru_cache(maxsize=2)(read_tensors)
    for file in files:
        stem = file.relative_to(source).with_suffix("").as_posix() if source.is_dir() else ""
        try:
            places = list(_places(opened(file), str(file)))
        except BadAtom:
            if not stem:
                raise
            places = [()]  # the error is raised again when the file is loaded, and quarantines it
        for place in places:
            load = partial(_load, opened, file, place, subspace)
            key = "/".join(part for part in (stem, key_text(place)) if part)
            yield Keyed(key or file.stem, _passage_id(place, stem or file.stem), load)


def _places(content: Any, where: str, place: Place = ()) -> Iterator[Place]:
    """Where in the content of a file its atoms are: mappings of names to tensors."""
    if not isinstance(content, Mapping | list | tuple):
        found = type(content).__name__
        raise BankError(
            f"{where}: gradients by parameter name are expected, found {found}", code="no_gradients", found=found
        )
    pairs = list(content.items() if isinstance(content, Mapping) else enumerate(content))
    if isinstance(content, Mapping) and pairs and all(isinstance(value, Tensor) for _, value in pairs):
        yield place
        return
    for key, value in pairs:
        if not isinstance(value, Mapping | list | tuple) or len(place) == _DEPTH:
            found = type(value).__name__
            raise BankError(
                f"{where}: gradients by parameter name are expected{f' at {place}' if place else ''}, "
                f"found {found} at {key!r:.60}",
                code="no_gradients",
                found=found,
            )
        yield from _places(value, where, (*place, key))


def _passage_id(place: Place, stem: str) -> str | None:
    """The passage that a key names: any text except a question's number with a rank, such as 0_1."""
    key = place[0] if place else stem
    if len(place) > 1 or not isinstance(key, str) or not key:
        return None
    return None if _QUESTION_AND_RANK.fullmatch(key.rsplit("/", 1)[-1]) else key


def _load(opened: Any, file: Path, place: Place, subspace: Subspace) -> Tensor:
    content = opened(file)
    for key in place:
        content = content[key]
    where = f"{file}, {key_text(place)!r}" if place else str(file)
    return flat_atom(subspace_names(content, where), subspace, where)
