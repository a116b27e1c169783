"""A request on its way through the engine: what was asked, what has been read and written, and its text as it comes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regrad.models.loading import LanguageModel
from regrad.models.subspace import Update


@dataclass(frozen=True)
class DecodingRequest:
    """A prompt (text), the updates it runs with, at most one in each subspace (none: the base model answers), and how
    its answer is decoded.

    `temperature` 0 is greedy; else tokens are drawn from the `top_p` nucleus, repeatably if there is a `seed`. `stop`
    are strings that end the answer and are not part of it (leading white space of the answer does not count); None
    stands for the model's own stop string. A `raw` prompt is read as it is, without the model's chat template.
    """

    prompt: str
    updates: tuple[Update, ...] = ()
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


Event = str | Finished | Exception
"""What a listener hears: some more text, then how it finished; or the error that ended it."""

Listener = Callable[[Event], None]


_WINDOW, _MOST = 8, 32  # tokens that are decoded again: from so many up to so many
_BROKEN = "\ufffd"


class TextStream:
    """The text of an answer as its tokens come.

    Leading white space is dropped, the answer ends before the first stop string, and trailing white space is not
    given out until something follows it: so the pieces, one after the other, are the final text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode, self._stops = decode, [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._start = self._read = 0
        self._before = ""  # the text of the tokens from start to read
        self._text = ""
        self._given = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Take one more token; returns the text that is certain now and was not given out before."""
        self._ids.append(token)
        self._text = (self._text + self._new_text()).lstrip() if not self._given else self._text + self._new_text()
        self._cut()
        return self._give(len(self._text) if self.stopped else len(self._text) - self._uncertain())

    def finish(self) -> str:
        """The rest of the text."""
        if not self.stopped:
            whole = self._text + self._tail()
            self._text = whole if self._given else whole.lstrip()
            self._cut()
        return self._give(len(self._text))

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._text[: self._given]

    def _new_text(self) -> str:
        """What the last tokens add, once they are whole characters: the tokenizer sees a few tokens before them."""
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(self._before) or now.endswith(_BROKEN):
            return ""
        new, self._before, self._read = now[len(self._before) :], now, len(self._ids)
        if self._read - self._start > _MOST:
            self._start = self._read - _WINDOW
            self._before = self._decode(self._ids[self._start :])
        return new

    def _tail(self) -> str:
        return self._decode(self._ids[self._start :])[len(self._before) :] if self._read < len(self._ids) else ""

    def _cut(self) -> None:
        found = [at for stop in self._stops if (at := self._text.find(stop)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    def _uncertain(self) -> int:
        """How much of the end may yet be cut off: the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stops):
                return length
        return 0

    def _give(self, upto: int) -> str:
        upto = max(self._given, len(self._text[:upto].rstrip()))
        piece, self._given = self._text[self._given : upto], upto
        return piece


logger = logging.getLogger(__name__)


class Row:
    """A request that waits or is being decoded. Raises `PromptTooLong` if it cannot fit the model's context."""

    def __init__(self, lm: LanguageModel, request: DecodingRequest, listener: Listener) -> None:
        self.request, self.listener = request, listener
        self.prompt = lm.encode_prompt(request.prompt, request.raw) or [lm.pad_id]
        lm.check_length(len(self.prompt), request.max_new_tokens)
        stops = (lm.config.prompts.stop,) if request.stop is None else request.stop
        self.stream = TextStream(_decoder(lm), stops)
        self.read = 0  # tokens of which keys and values are kept
        self.written: list[int] = []
        self.reason: Literal["stop", "length"] | None = None
        self.cancelled = False
        self.largest_batch = 1
        self._generator = _generator(request)
        self.arrived = time.perf_counter()
        self.entered = self.first_token = self.arrived

    @property
    def most_tokens(self) -> int:
        """Tokens that the row may come to have, prompt and answer."""
        return len(self.prompt) + self.request.max_new_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether some of the prompt has not been read."""
        return self.read < len(self.prompt)

    def next_tokens(self, most: int) -> list[int]:
        """What the next pass reads: a piece of the prompt, or the token written last."""
        return self.prompt[self.read : self.read + most] if self.is_prefilling else self.written[-1:]

    def choose(self, scores_V: Tensor) -> int:
        """Draw a token from the scores (logits), as the request says; numbers that are not finite are not drawn."""
        request = self.request
        scores_V = scores_V.double().cpu()
        scores_V = torch.where(scores_V.isfinite(), scores_V, -torch.inf)
        chances_V = ((scores_V - scores_V.max()) / request.temperature).softmax(-1).nan_to_num(1.0)
        if request.top_p >= 1:
            return int(torch.multinomial(chances_V, 1, generator=self._generator))
        chances, tokens = chances_V.sort(descending=True, stable=True)
        kept = chances.cumsum(-1) - chances < request.top_p
        kept[0] = True
        return int(tokens[torch.multinomial(chances * kept, 1, generator=self._generator)])

    def tell(self, event: Event) -> None:
        """Tell the listener; one that fails is not told anything more, and its request is dropped."""
        if self.cancelled:
            return
        try:
            self.listener(event)
        except Exception:
            logger.exception("who asked cannot be told; the request is dropped")
            self.cancelled = True

    def write(self, token: int, ends: Sequence[int]) -> None:
        """Take a token; tells the listener what text is certain, and sets `reason` if the answer is at its end."""
        if not self.written:
            self.first_token = time.perf_counter()
        self.written.append(token)
        if token in ends:
            self.reason = "stop"
            return
        piece = self.stream.add(token)
        if self.stream.stopped:
            self.reason = "stop"
        elif len(self.written) >= self.request.max_new_tokens:
            self.reason = "length"
        if piece:
            self.tell(piece)

    def finish(self) -> None:
        """Tell the listener the rest, and how it ended."""
        if rest := self.stream.finish():
            self.tell(rest)
        now = time.perf_counter()
        self.tell(
            Finished(
                self.stream.text,
                self.reason or "length",
                len(self.prompt),
                len(self.written),
                (self.entered - self.arrived) * 1e3,
                (self.first_token - self.entered) * 1e3,
                (now - self.first_token) * 1e3,
                self.largest_batch,
            )
        )


def _decoder(lm: LanguageModel) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(lm.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _generator(request: DecodingRequest) -> torch.Generator | None:
    if request.temperature <= 0:
        return None
    generator = torch.Generator()
    if request.seed is None:
        generator.seed()
        return generator
    return generator.manual_seed(request.seed)
