"""Gradients as the ReGrad authors' `encode.py` writes them (github.com/oneal2000/ReGrad).

One file a data set, torch.save of {"<question number>_<rank>": {PEFT parameter name: float32 gradient}}. Other nestings
of the same are read, too: by passage id, by (question, rank), lists instead of dictionaries, one file a passage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from regrad.bank.transfer.intake import BadAtom, Imported, layout_for, take_in
from regrad.bank.transfer.keyed import Keyed, group, key_text, read_names
from regrad.bank.transfer.names import flat_atom, subspace_names
from regrad.bank.transfer.pickles import read_tensors
from regrad.bank.transfer.source import local_source
from regrad.config import CodecName
from regrad.errors import BankError, MetaInitError
from regrad.language_model.subspace import Subspace
from regrad.meta_init import read_card

_QUESTION_AND_RANK = re.compile(r"\d+_\d+")
_DEPTH = 3

Place = tuple[Any, ...]
"""The keys and positions that lead to one atom inside a file."""


def import_release(
    source: str, uri: str, meta_init: str, ids: str | None = None, codec: CodecName | None = None
) -> Imported:
    """Add the gradients of a `.pt` file, or of all below a directory, at any URI, to a bank.

    `ids` is a file as `read_names` reads it; with a directory, its keys begin with the file's path without `.pt`. The
    MetaInit is the one that the gradients were computed at: nothing in them can prove that, but names and shapes must
    fit. Raises `BankError` naming what does not; a gradient that is damaged or not finite is quarantined.
    """
    fingerprint, subspace = _target(meta_init)
    layout = layout_for(uri, "gradient", fingerprint, subspace, codec)
    with local_source(source) as local:
        items = list(_items(local.path, subspace))
        grouped = group(items, read_names(ids) if ids else None, source)
        return take_in(uri, layout, local.renamed(grouped.incoming()), grouped.left_out)


def _target(meta_init: str) -> tuple[str, Subspace]:
    card = read_card(meta_init)
    if card.get("inner_steps", 1) != 1:
        raise MetaInitError(f"the MetaInit at {meta_init} was learned for several inner steps; it has no bank")
    try:
        return card["fingerprint"], Subspace.from_json(card["subspace"])
    except (KeyError, TypeError, ValueError) as error:
        raise MetaInitError(f"the MetaInit at {meta_init} is damaged: it names no subspace") from error


def _items(source: Path, subspace: Subspace) -> Iterator[Keyed]:
    """Every gradient of the source; only keys are kept, a file is read again when its turn comes."""
    files = sorted([*source.rglob("*.pt"), *source.rglob("*.pth")]) if source.is_dir() else [source]
    if not files:
        raise BankError(f"there is no .pt file below {source}")
    opened = lru_cache(maxsize=2)(read_tensors)
    for file in files:
        stem = file.relative_to(source).with_suffix("").as_posix() if source.is_dir() else ""
        try:
            places = list(_places(opened(file), str(file)))
        except BadAtom:
            if not stem:
                raise
            places = [()]  # its error comes up again when it is loaded, and quarantines it
        for place in places:
            load = partial(_load, opened, file, place, subspace)
            key = "/".join(part for part in (stem, key_text(place)) if part)
            yield Keyed(key or file.stem, _passage_id(place, stem or file.stem), load)


def _places(content: Any, where: str, place: Place = ()) -> Iterator[Place]:
    """Where in the content of a file its atoms are: mappings of names to tensors."""
    if not isinstance(content, Mapping | list | tuple):
        raise BankError(f"{where}: gradients by parameter name are expected, found {type(content).__name__}")
    pairs = list(content.items() if isinstance(content, Mapping) else enumerate(content))
    if isinstance(content, Mapping) and pairs and all(isinstance(value, Tensor) for _, value in pairs):
        yield place
        return
    for key, value in pairs:
        if not isinstance(value, Mapping | list | tuple) or len(place) == _DEPTH:
            raise BankError(
                f"{where}: gradients by parameter name are expected{f' at {place}' if place else ''}, "
                f"found {type(value).__name__} at {key!r:.60}"
            )
        yield from _places(value, where, (*place, key))


def _passage_id(place: Place, stem: str) -> str | None:
    """The passage that a key means by itself: a text that is not a question's number and a rank."""
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
