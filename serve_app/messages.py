"""What travels between the deployments, and how tensors do so without pickling their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regrad.retrieval.base import Hit


def bits_of(values: Tensor) -> Any:
    """The numbers in bf16, as an array of int16."""
    return values.to(torch.bfloat16).contiguous().view(torch.int16).numpy()


def tensor_of(bits: Any) -> Tensor:
    """The tensor of such an array, which may be read-only: it is copied."""
    return torch.from_numpy(bits.copy()).view(torch.bfloat16)


Contributions = Literal["leave_one_out", "norms"]
"""How each passage's part in an answer is measured: see `PassageUse.contribution`."""


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
    """One question, checked, whatever protocol it came by.

    `question` is what is retrieved for and what the prompt asks; with `raw` it is the prompt itself, and passages, if
    the method puts any there, go in front of it. `turns` came before it. `seconds` is what is left of its time,
    `traceparent` the W3C trace context that it belongs to.
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
    request_id: str = ""
    seconds: float = 60.0
    traceparent: str = ""


@dataclass(frozen=True)
class Release:
    """One consistent pair that requests run against: a MetaInit and a version of a bank that belongs to it."""

    name: str
    meta_init: str
    bank: str
    bank_version: int
    fingerprint: str
    share: float = 1.0

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What it is, whatever its name and share."""
        return self.meta_init, self.bank, self.bank_version, self.fingerprint


@dataclass(frozen=True)
class SearchRequest:
    """What the retriever is asked: a search, or named passages."""

    question: str
    k: int
    passage_ids: tuple[str, ...] | None = None
    traceparent: str = ""


@dataclass(frozen=True)
class LoadRequest:
    """What the bank loader is asked for one request's passages; `parts`: the single atoms, too.

    Without `atoms` only what was deleted is looked up.
    """

    release: Release
    parts: bool = False
    seconds: float | None = None
    traceparent: str = ""
    atoms: bool = True


@dataclass(frozen=True)
class Retrieved:
    """The passages for one question, best first, and how long the search took."""

    hits: tuple[Hit, ...]
    milliseconds: float


@dataclass(frozen=True)
class PassageUse:
    """How a passage came into an answer: the tier of its atom ("" if none), or why it has none.

    `contribution` is, for `leave_one_out`, the natural log of how much more probable the answer is with the passage's
    gradient than without it; for `norms`, the Euclidean norm of its step, gamma * alpha * gradient.
    """

    id: str
    tier: str = ""
    problem: str = ""
    contribution: float | None = None
    deleted: bool = False


@dataclass(frozen=True)
class GradientSum:
    """The sum of the passages' atoms [P] in bf16, of which bank and for which MetaInit, and what became of each.

    `parts` [k, P] are the single atoms (bf16, of those passages that have one, in order), if they were asked for.
    """

    total: Tensor
    fingerprint: str
    bank_version: str
    uses: tuple[PassageUse, ...]
    milliseconds: float
    parts: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """The numbers travel as NumPy arrays, which Ray moves without a copy."""
        rest = (self.fingerprint, self.bank_version, self.uses, self.milliseconds)
        return _gradient_sum, (bits_of(self.total), *rest, None if self.parts is None else bits_of(self.parts))


def _gradient_sum(
    total: Any, fingerprint: str, version: str, uses: tuple[PassageUse, ...], milliseconds: float, parts: Any
) -> GradientSum:
    rows = None if parts is None else tensor_of(parts)
    return GradientSum(tensor_of(total), fingerprint, version, uses, milliseconds, rows)


@dataclass(frozen=True)
class Degraded:
    """Something that was done instead of what was asked for: by which policy, why, and for which passages."""

    policy: str
    reason: str
    passage_ids: tuple[str, ...] = ()


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
    degraded: tuple[Degraded, ...] = ()
    load_milliseconds: float = 0.0
    queue_milliseconds: float = 0.0
    prefill_milliseconds: float = 0.0
    decode_milliseconds: float = 0.0
    batch_size: int = 1


@dataclass(frozen=True)
class Found:
    """First event of a stream: the passages."""

    retrieved: Retrieved


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


Event = Found | Piece | Reply
