"""What the deployments hand to each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regrad.retrieval.protocol import Hit


@dataclass(frozen=True)
class Retrieved:
    """The passages for one question, best first, and how long the search took."""

    hits: tuple[Hit, ...]
    milliseconds: float


@dataclass(frozen=True)
class GradientSum:
    """The sum of the passages' atoms [P] in bf16, where it came from and for which MetaInit, and how long it took."""

    total: Tensor
    fingerprint: str
    bank_version: str
    milliseconds: float


@dataclass(frozen=True)
class Question:
    """One question as the generator gets it."""

    text: str
    method: str
    gamma: float
    max_new_tokens: int


@dataclass(frozen=True)
class Answered:
    """The generator's answer; `batch_size` says with how many others it was decoded."""

    text: str
    prompt_tokens: int
    bank_version: str | None
    load_milliseconds: float
    queue_milliseconds: float
    generate_milliseconds: float
    batch_size: int
