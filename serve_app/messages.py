"""What travels between the deployments, and how tensors do so without pickling their numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from regrad.data.questions import Question, QuestionKind, Turns
from regrad.methods.base import BankNeed, BankState, Contributions, Note, PassageUse
from regrad.retrieval.hits import Hit


def bits_of(values: Tensor) -> Any:
    """The numbers in bf16, as an array of int16."""
    return values.to(torch.bfloat16).contiguous().view(torch.int16).numpy()


def tensor_of(bits: Any) -> Tensor:
    """The tensor of such an array, which may be read-only: it is copied."""
    return torch.from_numpy(bits.copy()).view(torch.bfloat16)


@dataclass(frozen=True)
class Turn:
    """An earlier message of a conversation; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How an answer is decoded. `stop` are strings that end it; None: the model's own stop string."""

    max_new_tokens: int = 20
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Ask:
    """One validated question, the same for every protocol: how to answer it, and no answers, unlike a `Question`.

    The prompt asks `question`; with `raw` it is the prompt itself, and passages, if the method puts any there, go in
    front of it. `turns` came before it. `seconds` is what is left of its time, `traceparent` the W3C trace context that
    it belongs to.
    """

    question: str
    method: str = "regrad"
    k: int = 3
    gamma: float = 1.0
    sampling: Sampling = Sampling()
    passage_ids: tuple[str, ...] | None = None
    turns: tuple[Turn, ...] = ()
    raw: bool = False
    release: str | None = None
    contributions: Contributions | None = None
    kind: QuestionKind = "open"
    choices: tuple[str, ...] = ()
    request_id: str = ""
    seconds: float = 60.0
    traceparent: str = ""

    @property
    def said(self) -> Turns:
        """The turns without instructions (of role `system`), as the questions of an evaluation have them."""
        return tuple((turn.role, turn.content) for turn in self.turns if turn.role != "system")

    @property
    def query(self) -> str:
        """What passages are searched for, as in an evaluation: the question and then what was said before it."""
        return Question("", self.question, (), turns=self.said).query


@dataclass(frozen=True)
class Release:
    """One consistent pair that requests run against: a MetaInit and a version of a bank that belongs to it.

    `pinned` says that an operator named the version; else it is the newest there was.
    """

    name: str
    meta_init: str
    bank: str
    bank_version: int
    fingerprint: str
    share: float = 1.0
    pinned: bool = False

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What answers depend on: releases that differ only in name or share have the same key."""
        return self.meta_init, self.bank, self.bank_version, self.fingerprint

    def beside(self, bank: tuple[str, int] | None) -> Release:
        """With the version that goes with an index, if that takes this release's bank along and none was named."""
        if bank is None or self.pinned or bank[0] != self.bank:
            return self
        return replace(self, bank_version=bank[1])


@dataclass(frozen=True)
class RoutedAsk:
    """A question on its way through the deployments: under which release, and what its method needs of them."""

    ask: Ask
    release: Release
    retrieves: bool
    bank: BankNeed


@dataclass(frozen=True)
class Retrieved:
    """The passages for one question, best first, and how long the search took.

    `bank` is the bank that the index takes along, and which version of it goes with what was found; `temperature` what
    the scores were divided by where the index was trained.
    """

    hits: tuple[Hit, ...]
    milliseconds: float
    bank: tuple[str, int] | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class GradientSum:
    """The sum of the passages' atoms [P] in bf16, of which bank and for which MetaInit, and what became of each.

    `bank_version` is None if the bank could not be read. `parts` [K, P] are the single atoms (bf16, of those passages
    that have one, in order), if they were asked for.
    """

    total: Tensor
    fingerprint: str
    bank_version: str | None
    uses: tuple[PassageUse, ...]
    milliseconds: float
    parts: Tensor | None = None

    @classmethod
    def unread(cls, retrieved: Retrieved, release: Release, problem: str) -> GradientSum:
        """Without a single gradient, for the method's policy to deal with: why the bank was not read is `problem`."""
        uses = tuple(PassageUse(hit.passage.id, problem=problem) for hit in retrieved.hits)
        return cls(torch.zeros(0), release.fingerprint, None, uses, 0.0)

    def apart(self) -> list[GradientSum]:
        """One for each passage; `parts` are there."""
        rows = iter(self.parts if self.parts is not None else ())
        found = []
        for use in self.uses:
            # Without an atom, or with a bank that could not be read, there is nothing to add up.
            row = self.total.new_zeros(0) if use.missing else next(rows)
            part = None if use.missing else row[None]
            found.append(replace(self, total=row, uses=(use,), parts=part))
        return found

    @property
    def bank(self) -> BankState:
        """Whether the bank was read."""
        return BankState.UNREAD if self.bank_version is None else BankState.READ

    def __reduce__(self) -> tuple[Any, ...]:
        """The numbers travel as NumPy arrays, which Ray moves without a copy."""
        rest = (self.fingerprint, self.bank_version, self.uses, self.milliseconds)
        return _gradient_sum, (bits_of(self.total), *rest, None if self.parts is None else bits_of(self.parts))


def _gradient_sum(
    total: Any, fingerprint: str, version: str | None, uses: tuple[PassageUse, ...], milliseconds: float, parts: Any
) -> GradientSum:
    rows = None if parts is None else tensor_of(parts)
    return GradientSum(tensor_of(total), fingerprint, version, uses, milliseconds, rows)


@dataclass(frozen=True)
class Answered:
    """The generator's answer. `batch_size` is the largest number of requests that were decoded together with it."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    bank_version: str | None
    release: str
    uses: tuple[PassageUse, ...] = ()
    degraded: tuple[Note, ...] = ()
    load_milliseconds: float = 0.0
    queue_milliseconds: float = 0.0
    prefill_milliseconds: float = 0.0
    decode_milliseconds: float = 0.0
    batch_size: int = 1


@dataclass(frozen=True)
class Piece:
    """Some more text of the answer."""

    text: str


@dataclass(frozen=True)
class Reply:
    """Last event of a stream, and the whole answer: what was asked, the passages, the answer and the time it took."""

    ask: Ask
    answered: Answered
    retrieved: Retrieved | None = None
    total_milliseconds: float = 0.0


StreamEvent = Retrieved | Piece | Reply
"""Of a stream: the passages if the method retrieves, any number of pieces, the reply."""
