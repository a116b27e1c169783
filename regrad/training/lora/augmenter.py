"""PRAG's document augmentation by the language model itself: other wordings of each passage, and questions about it.

Questions are wanted as a JSON list. If the output is none, the model is asked again with other random numbers, up to a
limit; a passage for which it never writes one is listed with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from regrad.data.augmented import Augmented, Pair, pair_of
from regrad.data.passages import Passage
from regrad.digests import json_digest
from regrad.errors import CorpusError, ModelError, TokenOutOfVocabulary
from regrad.inference.decoding import draws, sample
from regrad.models.loading import LanguageModel
from regrad.models.tokens import has_chat
from regrad.training.lora.config import AugmentConfig

NO_PAIRS = "no valid JSON list of questions and answers"
NO_REWRITE = "no other wording"
_MOST_BRACKETS = 20
_SETTINGS = {
    *("rewrite_prompt", "pairs_prompt", "pairs", "least_pairs", "full_answers", "rewrites"),
    *("temperature", "top_k", "top_p", "max_new_tokens", "retries"),
}


@dataclass(frozen=True)
class AugmentOutcome:
    """A passage with what was written for it, or why it cannot be used; `tries` is how often it was asked for pairs."""

    passage: Passage
    augmented: Augmented | None = None
    reason: str = ""
    detail: str = ""
    tries: int = 0


class Augmenter:
    """Writes with one model. The outcome of a passage depends on model, settings and passage alone, up to rounding."""

    def __init__(self, lm: LanguageModel, config: AugmentConfig) -> None:
        # A chat model is told what to write in its own template. What answers begin with, and the system message, are
        # about answering.
        prompts = lm.config.prompts.model_copy(update={"answer_start": "", "system": ""})
        self._lm = replace(lm, config=lm.config.model_copy(update={"prompts": prompts}))
        self._config = config
        self._chat = has_chat(lm.tokenizer, prompts)

    @cached_property
    def key(self) -> str:
        """SHA-256 (hex) of what the outcomes depend on besides the passages."""
        model = self._lm.config.model_dump(mode="json", include={"dtype", "attention", "prompts"})
        settings = self._config.model_dump(mode="json", include=_SETTINGS | {"seed"})
        return json_digest([self._lm.identity(), model, settings], 64)

    def write(self, passages: Sequence[Passage]) -> list[AugmentOutcome]:
        """One outcome a passage, in order."""
        outcomes: list[AugmentOutcome] = []
        for start in range(0, len(passages), self._config.batch_passages):
            outcomes += self._write(passages[start : start + self._config.batch_passages])
        return outcomes

    def _write(self, passages: Sequence[Passage]) -> list[AugmentOutcome]:
        faults = [self._fault(passage) for passage in passages]
        fit = [passage for passage, fault in zip(passages, faults, strict=True) if not fault]
        pairs, tries, last = self._pairs(fit)
        rewrites = self._rewrites(fit)
        written = iter(zip(pairs, tries, last, rewrites, strict=True))
        outcomes: list[AugmentOutcome] = []
        for passage, fault in zip(passages, faults, strict=True):
            if fault:
                outcomes.append(AugmentOutcome(passage, reason=fault))
                continue
            found, count, text, wordings = next(written)
            if found:
                reason = "" if wordings else NO_REWRITE
                outcomes.append(AugmentOutcome(passage, Augmented(passage, wordings, found), reason, tries=count))
            else:
                outcomes.append(AugmentOutcome(passage, reason=NO_PAIRS, detail=text, tries=count))
        return outcomes

    def _fault(self, passage: Passage) -> str:
        if not passage.text.strip():
            return "empty text"
        for prompt in (self._rewrite_prompt(passage), self._pairs_prompt(passage)):
            try:
                self._lm.check_length(len(self._ids(prompt)), self._config.max_new_tokens)
            except TokenOutOfVocabulary as error:
                return str(error)
            except ModelError as error:
                return f"the passage is too long: {error}"
        return ""

    def _rewrites(self, passages: Sequence[Passage]) -> list[tuple[str, ...]]:
        """`config.rewrites` wordings of each passage; empty ones are left out."""
        found: list[list[str]] = [[] for _ in passages]
        for number in range(self._config.rewrites):
            texts = self._sample([self._rewrite_prompt(p) for p in passages], passages, f"rewrite/{number}")
            for texts_here, text in zip(found, texts, strict=True):
                texts_here.extend([text.strip()] if text.strip() else [])
        return [tuple(texts) for texts in found]

    def _pairs(self, passages: Sequence[Passage]) -> tuple[list[tuple[Pair, ...]], list[int], list[str]]:
        """Questions for each passage, the number of tries, and the beginning of the last text."""
        pairs: list[tuple[Pair, ...]] = [()] * len(passages)
        tries = [0] * len(passages)
        last = [""] * len(passages)
        left = list(range(len(passages)))
        for attempt in range(1 + self._config.retries):
            here = [passages[i] for i in left]
            texts = self._sample([self._pairs_prompt(p) for p in here], here, f"pairs/{attempt}")
            for i, text in zip(left, texts, strict=True):
                config = self._config
                pairs[i] = parse_pairs(text, config.pairs, config.least_pairs, config.full_answers)
                tries[i] = attempt + 1
                last[i] = text[:200]
            left = [i for i in left if not pairs[i]]
        return pairs, tries, last

    def _sample(self, prompts: Sequence[str], passages: Sequence[Passage], purpose: str) -> list[str]:
        config = self._config
        if not prompts:
            return []
        numbers = [draws(f"{config.seed}/{purpose}/{p.id}", 1, config.max_new_tokens) for p in passages]
        ids = [self._ids(prompt) for prompt in prompts]
        chance = torch.cat(numbers)
        found = sample(self._lm, ids, chance, config.temperature, config.top_p, lambda _: False, config.top_k)
        return [item.text for item in found]

    def _ids(self, prompt: str) -> list[int]:
        # Without a chat template, whoever wrote the prompts may have written the control tokens of one into them.
        return self._lm.encode_prompt(prompt, controls=not self._chat)

    def _rewrite_prompt(self, passage: Passage) -> str:
        return self._filled(self._config.rewrite_prompt, passage)

    def _pairs_prompt(self, passage: Passage) -> str:
        return self._filled(self._config.pairs_prompt, passage)

    def _filled(self, template: str, passage: Passage) -> str:
        text = self._lm.config.prompts.passage_text(passage)
        return template.format(passage=text, pairs=self._config.pairs)


def parse_pairs(text: str, most: int, least: int = 1, full_answers: bool = False) -> tuple[Pair, ...]:
    """The first JSON list of `least` or more questions with answers in a text, cut to `most`; empty if there is none.

    With `full_answers` each of them needs its `full_answer`, too.
    """
    decoder = json.JSONDecoder()
    place = text.find("[")
    for _ in range(_MOST_BRACKETS):
        if place < 0:
            break
        try:
            found = decoder.raw_decode(text, place)[0]
            if isinstance(found, list) and len(found) >= least:
                pairs = tuple(pair_of(_with_text(item)) for item in found[:most])
                if all(pair.full_answer for pair in pairs) or not full_answers:
                    return pairs
        except (ValueError, RecursionError, CorpusError):  # not JSON, or a list of something else
            pass
        place = text.find("[", place + 1)
    return ()


def _with_text(item: Any) -> Any:
    """A pair whose answer is a number or several texts, as models like to write them, with one text as its answer."""
    answer = item.get("answer") if isinstance(item, dict) else None
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return {**item, "answer": str(answer)}
    if isinstance(answer, list) and answer and all(isinstance(text, str) for text in answer):
        return {**item, "answer": ", ".join(answer)}
    return item
