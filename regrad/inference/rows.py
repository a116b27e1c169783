"""A request on its way through the engine: its settings, what has been read and written, and its text as it grows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from regrad.models.subspace import Update

if TYPE_CHECKING:
    from regrad.inference.prefixes import Beginning
    from regrad.models.loading import LanguageModel

logger = logging.getLogger(__name__)

_LONGEST = 3  # the longest run of tokens that is looked for
_BORDER = -1  # between texts: no draft goes beyond one, none matches it


@dataclass(frozen=True)
class DecodingRequest:
    """A prompt, the updates it runs with (at most one in each subspace; without any the base model answers), and how
    its answer is decoded.

    `temperature` 0 is greedy; else tokens are drawn from the `top_p` nucleus, repeatably with a `seed`. `stop` are
    strings that end the answer and are not part of it (in the answer's leading white space they do not count); None
    stands for the model's own stop string. A `raw` prompt is read as it is, without the model's chat template.
    `sources` are texts outside the prompt that the answer may quote: an engine that drafts takes drafts from them, too.
    `ids` are the prompt's token ids where they are known already: those of `LanguageModel.encode_prompt`, behind the
    virtual tokens if there are any.
    """

    prompt: str
    updates: tuple[Update, ...] = ()
    max_new_tokens: int = 20
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    raw: bool = False
    sources: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()


class Drafts:
    """Drafts of an answer's next tokens: what followed its last ones before, in the prompt or the request's passages.

    The engine reads a draft in the pass of the last token and keeps what the model chooses anyway, so an answer is the
    same in fewer passes. Source: prompt lookup decoding (Saxena, 2023).
    """

    def __init__(self, texts: Iterable[Iterable[int]]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for text in texts:
            self.add(_BORDER)
            for token in text:
                self.add(token)

    def add(self, token: int) -> None:
        """Append a token."""
        # A run is known once something follows it, so that the last tokens find where they were before.
        end = len(self._ids)
        for length in range(1, min(_LONGEST, end) + 1):
            self._after[tuple(self._ids[end - length :])] = end
        self._ids.append(token)

    def next(self, most: int) -> list[int]:
        """At most so many tokens that followed the longest run of last tokens that was there before, the last time."""
        for length in range(min(_LONGEST, len(self._ids)), 0, -1):
            run = tuple(self._ids[-length:])
            start = self._after.get(run)
            if start is not None and _BORDER not in run:
                found = self._ids[start : start + most]
                return found[: found.index(_BORDER)] if _BORDER in found else found
        return []


@dataclass(frozen=True)
class Finished:
    """An answer: its text, why it ended, how many tokens were read and written, and how long each part took.

    `largest_batch` is the largest number of requests in any step that it took part in, itself included. Of
    `given_tokens` of the prompt keys and values, of all blocks or of the lower ones, were kept from earlier requests.
    """

    text: str
    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    queue_milliseconds: float
    prefill_milliseconds: float
    decode_milliseconds: float
    largest_batch: int
    given_tokens: int = 0


DecodingEvent = str | Finished | Exception
"""What a listener receives: more text, then how it finished; or the error that ended it."""

DecodingListener = Callable[[DecodingEvent], None]


# Tokens that are decoded again with each new one, as a token's text depends on those before it: when there are
# more than _MOST_DECODED, all but the last _KEPT are left behind.
_KEPT = 8
_MOST_DECODED = 32
_BROKEN = "\ufffd"  # what a tokenizer writes for a character of which some bytes are still to come


class TextStream:
    """The text of an answer as its tokens arrive.

    Leading white space is dropped, the answer ends before the first stop string, and trailing white space is held back
    until something follows it: so the pieces, joined, are the final text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        # `_before` is the text of the tokens from `_start` to `_read`.
        self._start = 0
        self._read = 0
        self._before = ""
        self._text = ""
        self._given = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Take one more token; returns the text that is certain now and has not been returned before."""
        self._ids.append(token)
        now = self._decode(self._ids[self._start :])
        new = ""
        if len(now) > len(self._before) and not now.endswith(_BROKEN):
            new = now[len(self._before) :]
            self._before = now
            self._read = len(self._ids)
            if self._read - self._start > _MOST_DECODED:
                self._start = self._read - _KEPT
                self._before = self._decode(self._ids[self._start :])
        self._append(new)
        if self.stopped:
            return self._give(len(self._text))
        # The end may still turn out to be the beginning of a stop string, and is held back as long as it may.
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stops):
                return self._give(len(self._text) - length)
        return self._give(len(self._text))

    def finish(self) -> str:
        """The rest of the text."""
        if not self.stopped:
            broken = self._read < len(self._ids)
            self._append(self._decode(self._ids[self._start :])[len(self._before) :] if broken else "")
        return self._give(len(self._text))

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._text[: self._given]

    def _append(self, new: str) -> None:
        self._text = self._text + new if self._given else (self._text + new).lstrip()
        found = [at for stop in self._stops if (at := self._text.find(stop)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.stopped = True

    def _give(self, end: int) -> str:
        end = max(self._given, len(self._text[:end].rstrip()))
        piece = self._text[self._given : end]
        self._given = end
        return piece


class Row:
    """A request that waits or is being decoded. Raises `PromptTooLong` if it cannot fit the model's context."""

    def __init__(self, lm: LanguageModel, request: DecodingRequest, listener: DecodingListener) -> None:
        self.request = request
        self.listener = listener
        self.prompt = list(request.ids) or lm.encode_prompt(request.prompt, request.raw) or [lm.pad_id]
        lm.check_length(len(self.prompt), request.max_new_tokens)

        def decode(ids: Sequence[int]) -> str:
            tokens = list(ids)
            return str(lm.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

        self.stream = TextStream(decode, (lm.config.prompts.stop,) if request.stop is None else request.stop)
        self.read = 0  # tokens whose keys and values are kept
        self.given = 0  # tokens at its beginning that other requests have read for it, at least in the lower blocks
        self.beginning: Beginning | None = None
        # Of its updates those that run in its passes now: at first the ones that act on everything.
        self.in_force = tuple(update for update in request.updates if update.acts_on == "everything")
        self._prefilled = len(self.prompt) - int(self.awaits_updates)
        self.written: list[int] = []
        self.reason: Literal["stop", "length"] | None = None
        self.cancelled = False
        self.largest_batch = 1
        self.passes = 0  # in which it took a token
        self.drafts: Drafts | None = None
        # A generator of its own, so that what a row draws does not depend on the rows beside it.
        self._generator: torch.Generator | None = None
        if request.temperature > 0:
            self._generator = torch.Generator()
            if request.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(request.seed)
        self.arrived = time.perf_counter()
        self.entered = self.arrived
        self.first_token = self.arrived

    @property
    def most_tokens(self) -> int:
        """The most tokens that the row can have, prompt and answer."""
        return len(self.prompt) + self.request.max_new_tokens

    @property
    def awaits_updates(self) -> bool:
        """Whether some of its updates, those that act on the answer, are not applied yet."""
        return len(self.in_force) < len(self.request.updates)

    @property
    def is_prefilling(self) -> bool:
        """Whether part of the prompt has to be read before the row is decoded.

        That is all of it, or all but the last token, at which updates that act on the answer begin.
        """
        return self.read < self._prefilled

    @property
    def given_next(self) -> Tensor | None:
        """What the first adapted block is given of the tokens that come next, if the blocks below need not run."""
        return self.beginning.left(self.read) if self.beginning else None

    @property
    def has_read_prompt(self) -> bool:
        """Whether all of the prompt has been read, so that a token can be written."""
        return self.read >= len(self.prompt)

    def next_tokens(self, most: int, most_drafted: int = 0) -> list[int]:
        """What the next pass reads: a piece of the prompt, or the latest token and a draft of those after it."""
        if self.is_prefilling:
            end = min(self.read + most, self._prefilled)
            limit = self.beginning.end(self.read) if self.beginning else None
            return self.prompt[self.read : end if limit is None else min(end, limit)]
        # The last token of an answer is never read, so a draft of it is of no use.
        left = min(most_drafted, self.request.max_new_tokens - len(self.written) - 1)
        latest = self.written[-1:] or self.prompt[-1:]
        return latest + (self.drafts.next(left) if self.drafts and left > 0 else [])

    def choose(self, scores_V: Tensor) -> int:
        """Draw a token from the scores (logits) as the request says; scores that are not finite are not drawn."""
        request = self.request
        # Double precision, and the largest score subtracted first: a tiny temperature then is greedy, not a division
        # that overflows; and nothing but numbers that are not finite leaves all chances alike.
        scores_V = scores_V.double().cpu()
        scores_V = torch.where(scores_V.isfinite(), scores_V, -torch.inf)
        chances_V = ((scores_V - scores_V.max()) / request.temperature).softmax(-1).nan_to_num(1.0)
        if request.top_p >= 1:
            return int(torch.multinomial(chances_V, 1, generator=self._generator))
        chances, tokens = chances_V.sort(descending=True, stable=True)
        kept = chances.cumsum(-1) - chances < request.top_p
        kept[0] = True
        return int(tokens[torch.multinomial(chances * kept, 1, generator=self._generator)])

    def tell(self, event: DecodingEvent) -> None:
        """Give the listener an event; if it raises, its request is dropped."""
        if self.cancelled:
            return
        try:
            self.listener(event)
        except Exception:
            logger.exception("a listener failed; its request is dropped")
            self.cancelled = True

    def take(self, scores_TV: Tensor, best: Sequence[int], ends: Sequence[int], draft: Sequence[int] = ()) -> None:
        """Choose a token by the first scores, of which `best` are the first, and write it; ends the row if that fails.

        As long as the token is the draft's, the scores after it are those of the answer, and give another.
        """
        self.passes += 1
        try:
            for number, token in enumerate(best):
                token = self.choose(scores_TV[number]) if self.request.temperature > 0 else token
                self.write(token, ends)
                if self.reason or number == len(draft) or token != draft[number]:
                    return
                self.read += 1
        except Exception as error:  # a sampler's or a tokenizer's, of whatever class: the rows beside it go on
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Give the listener the error; the row leaves the batch."""
        logger.error("a request failed while it was decoded", exc_info=error)
        self.tell(error)
        self.cancelled = True

    def write(self, token: int, ends: Sequence[int]) -> None:
        """Take a token: gives the listener the text that is certain, and sets `reason` if the answer is at its end."""
        if not self.written:
            self.first_token = time.perf_counter()
        self.written.append(token)
        if self.drafts:
            self.drafts.add(token)
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
        """Give the listener the rest of the text, and how the answer ended."""
        try:
            rest = self.stream.finish()
        except Exception as error:
            self.fail(error)
            return
        if rest:
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
                self.given,
            )
        )
