"""Writing questions for passages that have none: candidates are sampled, parsed as pairs, and asked again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from regrad.data.augmented import Pair
from regrad.data.jsonl import shown
from regrad.data.passages import Passage, parse_passage
from regrad.data.questions import normalise
from regrad.digests import json_digest
from regrad.errors import CorpusError, ModelError, TokenOutOfVocabulary
from regrad.evaluation.metrics import exact_match
from regrad.inference.decoding import GenerationRequest, Sampled, check_fits, draws, generate, sample
from regrad.models.loading import LanguageModel
from regrad.prompts import PromptFormat
from regrad.training.synthesis.config import SynthesisConfig

_QUESTION = r"(?:^|\n)[\s*#>-]*(?:\d+[.)]\s*)?\**(?:Question|Q)\s*\d*\s*\**:\**"
_ANSWER = r"(?:^|\n|(?<=[?.!]))[\s*#>-]*(?:Answer|A)\s*\d*\s*\**:\**"


class PairParser:
    """Parses `question, answer marker, answer, stop`, with the markers of the model's own question template.

    Models that were not trained on that template write other markers: `Q:`, `**Answer:**`, a number before the
    question, a sentence before the pair. Those are understood too; a pair in another language or form needs a question
    template that has its markers.
    """

    def __init__(self, prompts: PromptFormat) -> None:
        before, _, after = prompts.question.partition("{question}")
        self._question = _marker(_QUESTION, before)
        self._answer = _marker(_ANSWER, after)
        self._stop = prompts.stop

    def finished(self, text: str) -> bool:
        """Whether the text has a whole answer, up to the stop string."""
        found = self._answer.search(text)
        return found is not None and self._stop in text[found.end() :].lstrip()

    def parse(self, text: str) -> Pair | None:
        """The first pair, or None if there is no answer or no question of one line."""
        found = self._answer.search(text)
        if found is None:
            return None
        question = self._question.split(text[: found.start()])[-1].strip().strip("*").strip()
        answer = text[found.end() :].lstrip().split(self._stop)[0].strip().strip("*").strip()
        return Pair(question, answer) if question and answer and "\n" not in question else None


def _marker(general: str, template: str) -> re.Pattern[str]:
    own = re.escape(template.strip())
    return re.compile(rf"{own}|{general}" if own else general, re.IGNORECASE)


BAD_LINE = "not a passage"
EMPTY = "empty text"
LONG_PASSAGE = "the passage is too long"
UNKNOWN_TOKEN = "a token that the model does not know"
UNPARSABLE = "no question and answer"
TOO_LONG = "too long"
DUPLICATE = "duplicate"
UNSUPPORTED = "not answered from the passage"
KNOWN = "answered without the passage"

_WRITING = (
    *("candidates", "prompt", "temperature", "top_p", "max_new_tokens"),
    *("max_answer_tokens", "max_passage_tokens", "batch_passages", "seed"),
)
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Rejected:
    """A pair, a text or a passage that was not used, and why; `detail` may say more."""

    reason: str
    question: str = ""
    answer: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Draft:
    """A passage, the number of candidates written for it, the pairs to keep, and what was rejected."""

    passage: Passage
    candidates: int = 0
    pairs: tuple[Pair, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """What a part holds of it, the inverse of `draft_of`: of a pair question and answer, as no more is written."""
        pairs = [{"question": pair.question, "answer": pair.answer} for pair in self.pairs]
        return {**asdict(self), "pairs": pairs}

    def without(self, dropped: Sequence[Pair], reason: str) -> Draft:
        """The draft with some of its pairs rejected for `reason`."""
        kept = tuple(pair for pair in self.pairs if pair not in dropped)
        rejected = tuple(Rejected(reason, pair.question, pair.answer) for pair in dropped)
        return replace(self, pairs=kept, rejected=self.rejected + rejected)


class PairWriter:
    """Writes and judges with one model.

    A passage's draft depends on the model, the settings and the passage, and on the passages beside it only where the
    rounding of their batch tips a draw or an answer (`sample` says how rarely).
    """

    def __init__(self, lm: LanguageModel, config: SynthesisConfig) -> None:
        self._lm, self._config = lm, config
        self._parser = PairParser(lm.config.prompts)

    @cached_property
    def key(self) -> str:
        """SHA-256 (hex) of what drafts depend on besides the passages: the weights, the prompts, the settings."""
        model = self._lm.config.model_dump(mode="json", include={"dtype", "attention", "prompts"})
        settings = self._config.model_dump(mode="json", include=set(_WRITING))
        return json_digest([self._lm.identity(), model, settings], 64)

    def write(self, passages: Sequence[Passage]) -> list[Draft]:
        """One draft a passage, in order; that of a passage that cannot be used has a reason and no pairs."""
        drafts = {i: self._refuse(passage) for i, passage in enumerate(passages)}
        usable = [i for i, draft in drafts.items() if draft is None]
        size = self._config.batch_passages
        for start in range(0, len(usable), size):
            numbers = usable[start : start + size]
            drafts.update(zip(numbers, self._write([passages[i] for i in numbers]), strict=True))
        return [draft for draft in drafts.values() if draft is not None]

    def _refuse(self, passage: Passage) -> Draft | None:
        if not passage.text.strip():
            return Draft(passage, rejected=(Rejected(EMPTY),))
        try:
            tokens = len(self._lm.encode(self._lm.config.prompts.passage_text(passage)))
        except TokenOutOfVocabulary as error:
            return Draft(passage, rejected=(Rejected(UNKNOWN_TOKEN, detail=str(error)),))
        if tokens > self._config.max_passage_tokens:
            problem = f"{tokens} tokens, and max_passage_tokens is {self._config.max_passage_tokens}"
            return Draft(passage, rejected=(Rejected(LONG_PASSAGE, detail=problem),))
        try:
            request = GenerationRequest(self._prompt(passage), (), self._config.max_new_tokens, raw=True)
            check_fits(self._lm, request, controls=True)
        except ModelError as error:
            return Draft(passage, rejected=(Rejected(LONG_PASSAGE, detail=str(error)),))
        return None

    def _prompt(self, passage: Passage) -> str:
        context = self._lm.config.prompts.context_text([passage])
        return self._config.prompt.format(context=context, title=passage.title, text=passage.text)

    def _write(self, passages: Sequence[Passage]) -> list[Draft]:
        config, lm = self._config, self._lm
        asked = [lm.encode_prompt(self._prompt(passage), raw=True, controls=True) for passage in passages]
        prompts = [ids for ids in asked for _ in range(config.candidates)]
        numbers = [draws(f"{config.seed}/{p.id}", config.candidates, config.max_new_tokens) for p in passages]
        texts = sample(lm, prompts, torch.cat(numbers), config.temperature, config.top_p, self._parser.finished)
        n = config.candidates
        drafts = [self._read(passage, texts[i * n : (i + 1) * n]) for i, passage in enumerate(passages)]
        # A pair is kept if the model gives its answer with the passage and does not give it without.
        drafts = [_first_of_each_question(draft) for draft in self._checked(drafts, True, UNSUPPORTED)]
        return self._checked(drafts, False, KNOWN)

    def _read(self, passage: Passage, texts: Sequence[Sampled]) -> Draft:
        pairs: dict[tuple[str, str], Pair] = {}
        rejected: list[Rejected] = []
        for item in texts:
            pair = self._parser.parse(item.text)
            key = (normalise(pair.question), normalise(pair.answer)) if pair else ("", "")
            reason = self._fault(item, pair) or (DUPLICATE if key in pairs else None)
            if pair is None:
                rejected.append(Rejected(reason or UNPARSABLE, detail=item.text[:_SHOWN_CHARACTERS]))
            elif reason is not None:
                rejected.append(Rejected(reason, pair.question, pair.answer))
            else:
                pairs[key] = pair
        return Draft(passage, len(texts), tuple(pairs.values()), tuple(rejected))

    def _fault(self, item: Sampled, pair: Pair | None) -> str | None:
        if not item.complete:
            return TOO_LONG
        if pair is None or not normalise(pair.question) or not normalise(pair.answer):
            return UNPARSABLE
        try:
            return TOO_LONG if len(self._lm.encode(pair.answer)) > self._config.max_answer_tokens else None
        except TokenOutOfVocabulary:
            return UNKNOWN_TOKEN

    def _checked(self, drafts: Sequence[Draft], with_passage: bool, reason: str) -> list[Draft]:
        """The drafts without the pairs whose answer the model fails to give with the passage, or gives without it."""
        asked = [(pair.question, [d.passage] if with_passage else []) for d in drafts for pair in d.pairs]
        answers = iter(self._ask(asked))
        checked: list[Draft] = []
        for draft in drafts:
            dropped = [pair for pair in draft.pairs if exact_match(next(answers), [pair.answer]) != with_passage]
            checked.append(draft.without(dropped, reason))
        return checked

    def _ask(self, questions: Sequence[tuple[str, list[Passage]]]) -> list[str]:
        """Greedy answers; empty for a question that does not fit the context together with its passage."""
        prompts = self._lm.config.prompts
        requests = [
            GenerationRequest(prompts.prompt(question, passages), (), self._config.max_answer_tokens)
            for question, passages in questions
        ]
        fitting: list[int] = []
        for number, request in enumerate(requests):
            with suppress(ModelError):
                check_fits(self._lm, request)
                fitting.append(number)
        answers = [""] * len(requests)
        for number, item in zip(fitting, generate(self._lm, [requests[i] for i in fitting]), strict=True):
            answers[number] = item.text
        return answers


def read_line(line: bytes, problem: str = "") -> Passage | Draft:
    """The passage of one line of a corpus, or a draft with the reason why there is none."""
    try:
        return parse_passage(line, problem)
    except CorpusError as error:
        return Draft(Passage(shown(line), "", ""), rejected=(Rejected(BAD_LINE, detail=str(error)),))


def draft_of(record: dict[str, Any]) -> Draft:
    """The draft from its record."""
    pairs = tuple(Pair(**item) for item in record["pairs"])
    rejected = tuple(Rejected(**item) for item in record["rejected"])
    return Draft(Passage(**record["passage"]), record["candidates"], pairs, rejected)


def _first_of_each_question(draft: Draft) -> Draft:
    first: dict[str, Pair] = {}
    for pair in draft.pairs:
        first.setdefault(normalise(pair.question), pair)
    again = [pair for pair in draft.pairs if pair not in first.values()]
    return draft.without(again, DUPLICATE)
