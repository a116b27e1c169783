"""One row of the engine's batch: a request, what has been read of its prompt, and what has been written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from regrad.errors import PromptTooLong
from regrad.language_model.engine.request import DecodingRequest, Finished, Listener, Update
from regrad.language_model.engine.text import TextStream
from regrad.language_model.loading import LanguageModel

logger = logging.getLogger(__name__)


class Row:
    """A request that waits or is being decoded. Raises `PromptTooLong` if it cannot fit the model's context."""

    def __init__(self, lm: LanguageModel, request: DecodingRequest, listener: Listener) -> None:
        self.request, self.listener = request, listener
        self.prompt = lm.encode_prompt(request.prompt, request.raw) or [lm.pad_id]
        check_length(lm, len(self.prompt), request.max_new_tokens)
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

    def tell(self, update: Update) -> None:
        """Tell the listener; one that fails is not told anything more, and its request is dropped."""
        if self.cancelled:
            return
        try:
            self.listener(update)
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


def context_length(lm: LanguageModel) -> int | None:
    """Tokens that the model can see: its context, or its window if all it sees is one."""
    config = lm.model.config
    lengths = [getattr(config, "max_position_embeddings", None), getattr(config, "sliding_window", None)]
    known = [int(length) for length in lengths if isinstance(length, int) and length > 0]
    return min(known) if known else None


def check_length(lm: LanguageModel, prompt_tokens: int, max_new_tokens: int) -> None:
    """Raise `PromptTooLong` if the prompt and the longest answer exceed the model's context."""
    limit = context_length(lm)
    if limit is not None and prompt_tokens + max_new_tokens > limit:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens and {max_new_tokens} may be added, "
            f"but the model's context is {limit}; ask with fewer passages or a shorter question"
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
