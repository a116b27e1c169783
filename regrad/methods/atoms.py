"""Fetching what a question's passages have in a bank, for every method that keeps something by passage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regrad.bank.config import TiersConfig
from regrad.bank.manifest import Kind, Manifest, current_version, read_manifest
from regrad.bank.reader import BankReader, Fetched
from regrad.data.passages import Passage
from regrad.errors import AtomNotFound, MethodError
from regrad.gradients.extractor import Extracted
from regrad.methods.base import Asked
from regrad.methods.config import MethodConfig
from regrad.storage import Storage

_VERBS: dict[Kind, str] = {"gradient": "build", "adapter": "adapters"}
_PATIENT = TiersConfig(deadline_seconds=300.0)  # nobody waits for the answer, and a late atom is no missing one


@dataclass(frozen=True)
class Found:
    """The atoms of a question [K, P] float32 with the scores of their passages, and which passages have none and why.

    Without scores of the caller's, all are 1.
    """

    atoms: Tensor
    scores: list[float]
    bytes: int
    missing: list[tuple[Passage, str]]

    @property
    def note(self) -> str:
        """What is missing, in words."""
        return "; ".join(f"no atom for {passage.id}: {problem}" for passage, problem in self.missing)


def bank_manifest(config: MethodConfig, kind: Kind) -> Manifest:
    """The manifest of the method's bank; raises `MethodError` if there is no bank or it is of the other kind."""
    if config.bank is None:
        raise MethodError(
            f"method {config.kind} ({config.name}) needs 'bank', a bank of {kind}s that `regrad {_VERBS[kind]}` fills"
        )
    storage = Storage(config.bank)
    version = config.bank_version or current_version(storage)
    if version is None:
        raise MethodError(f"there is no bank at {config.bank}; fill one with `regrad {_VERBS[kind]}`")
    manifest = read_manifest(storage, version)
    if manifest.kind != kind:
        raise MethodError(
            f"method {config.kind} ({config.name}) needs a bank of {kind}s, and the one at {config.bank} holds "
            f"{manifest.kind}s; fill another with `regrad {_VERBS[kind]}`"
        )
    return manifest


def check_bank_covers(config: MethodConfig, passages: Sequence[Passage]) -> None:
    """Raise `MethodError` if the method's bank has the atom of none of these passages, which would all be left out.

    Reads no atom. Nothing is checked if `on_missing` says what else to do, or if there are no passages.
    """
    if config.bank is None or config.on_missing != "fewer" or not passages:
        return
    with BankReader(config.bank, None, config.bank_version) as reader:
        if not any(_has(reader, passage) for passage in passages):
            raise _covers_nothing(config, reader.manifest.kind, passages)


def _has(reader: BankReader, passage: Passage) -> bool:
    location = reader.locate(passage.id)
    return location is not None and location.entry.belongs_to(passage.text_hash)


def _covers_nothing(config: MethodConfig, kind: Kind, passages: Sequence[Passage]) -> MethodError:
    online = ", or set on_missing=online, which computes what is missing" if kind == "gradient" else ""
    return MethodError(
        f"{config.name}: the bank at {config.bank} has the atom of none of the {len(passages)} passages of the first "
        f"questions (the first is {passages[0].id!r:.80}), or only of other texts: every question would be answered "
        f"without; fill a bank of this corpus with `regrad {_VERBS[kind]}`{online}"
    )


class BankAtoms:
    """The atoms of a method's bank."""

    def __init__(self, config: MethodConfig, fingerprint: str | None = None) -> None:
        self._reader = BankReader(config.bank or "", fingerprint, config.bank_version, _PATIENT)
        self._config, self._covers = config, config.on_missing != "fewer"

    @property
    def manifest(self) -> Manifest:
        """Of the version that is read."""
        return self._reader.manifest

    def of_all(self, asked: Sequence[Asked]) -> list[Found]:
        """What the bank has for each question's passages.

        Raises `MethodError` if it has nothing for any of the first questions that have passages, `AtomNotFound` if an
        atom must not be absent, `AtomDamaged` or `StorageError` for one that is there and cannot be read.
        """
        found = [self._of(item) for item in asked]
        passages = [passage for item in asked for passage in item.passages]
        if passages and not self._covers:
            if not any(len(item.atoms) for item in found):
                raise _covers_nothing(self._config, self.manifest.kind, passages)
            self._covers = True
        return found

    def _of(self, asked: Asked) -> Found:
        fetched = self._reader.fetch(asked.passages)
        self._check(asked.passages, fetched)
        scores = list(asked.scores) or [1.0] * len(asked.passages)
        missing = [(p, item.problem) for p, item in zip(asked.passages, fetched, strict=True) if item.record is None]
        records = [item.record for item in fetched if item.record is not None]
        kept = [score for score, item in zip(scores, fetched, strict=True) if item.record is not None]
        empty = torch.empty(0, self._reader.codec.record_bytes, dtype=torch.uint8)
        atoms_KP = self._reader.codec.decode(torch.stack(records) if records else empty)
        return Found(atoms_KP, kept, len(records) * self._reader.codec.record_bytes, missing)

    def _check(self, passages: Sequence[Passage], fetched: Sequence[Fetched]) -> None:
        """What is damaged or late is an error: left out, it would change a score that is then kept."""
        for passage, item in zip(passages, fetched, strict=True):
            if item.record is None and (item.error is not AtomNotFound or self._config.on_missing == "fail"):
                raise item.error(
                    f"the bank at {self._reader.uri} has no atom for passage {passage.id!r}: {item.problem}"
                )


def with_computed(found: Found, asked: Asked, computed: Sequence[Extracted]) -> Found:
    """The same with atoms that were computed for its missing passages, each at its own place."""
    had = {item.passage.id: item for item in computed}
    scores = list(asked.scores) or [1.0] * len(asked.passages)
    old = iter(found.atoms)
    absent = {passage.id for passage, _ in found.missing}
    rows: list[Tensor] = []
    kept: list[float] = []
    missing: list[tuple[Passage, str]] = []
    for passage, score in zip(asked.passages, scores, strict=True):
        atom = had[passage.id].atom if passage.id in absent else next(old)
        if atom is None:
            missing.append((passage, had[passage.id].problem))
        else:
            rows.append(atom)
            kept.append(score)
    return replace(found, atoms=torch.stack(rows) if rows else found.atoms[:0], scores=kept, missing=missing)


def check_scores(asked: Sequence[Asked]) -> None:
    """Raise `MethodError` unless a question has a score for every passage, or none."""
    for item in asked:
        if item.scores and len(item.scores) != len(item.passages):
            raise MethodError(f"a question has {len(item.passages)} passages and {len(item.scores)} scores")
