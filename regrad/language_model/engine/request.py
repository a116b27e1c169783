"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class DecodingRequest:
    """A prompt (text), the update it runs with ([P], or None for the base model) and how its answer is decoded.

    `temperature` 0 is greedy; else tokens are drawn from the `top_p` nucleus, repeatably if there is a `seed`. `stop`
    are strings that end the answer and are not part of it (leading white space of the answer does not count); None
    stands for the model's own stop string. A `raw` prompt is read as it is, without the model's chat template.
    """

    prompt: str
    update: Tensor | None = None
    max_new_tokens: int = 20
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    raw: bool = False


@dataclass(frozen=True)
class Finished:
    """An answer: its text, why it ended, how many tokens were read and written, and how long each part took.

    `largest_batch` is the largest number of requests, this one included, of any step that it took part in.
    """

    text: str
    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    queue_milliseconds: float
    prefill_milliseconds: float
    decode_milliseconds: float
    largest_batch: int


Update = str | Finished | Exception
"""What a listener hears: some more text, then how it finished; or the error that ended it."""

Listener = Callable[[Update], None]
