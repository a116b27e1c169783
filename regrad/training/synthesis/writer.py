"""Writing questions for passages that have none: candidates are sampled, read as pairs, and asked again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch

from regrad.data.jsonl import shown
from regrad.data.passages import Passage, parse_passage
from regrad.errors import CorpusError, ModelError
from regrad.evaluation.answer_parsing.statements import normalise
from regrad.evaluation.metrics import exact_match
from regrad.inference.decoding import GenerationRequest, Sampled, check_fits, draws, generate, sample
from regrad.models.loading import LanguageModel
from regrad.prompts import PromptFormat
from regrad.training.synthesis.config import SynthesisConfig

_QUESTION = r"(?:^|\n)[\s*#>-]*(?:\d+[.)]\s*)?\**(?:Question|Q)\s*\d*\s*\**:\**"
_ANSWER = r"(?:^|\n|(?<=[?.!]))[\s*#>-]*(?:Answer|A)\s*\d*\s*\**:\**"


@dataclass(frozen=True)
class Pair:
    """A question and its answer."""

    question: str
    answer: str


class PairParser:
    """Reads `question, answer marker, answer, stop`, the markers being those of the model's own question template.

    Models that were not trained on that template write their own: `Q:`, `**Answer:**`, a number before the question,
    a sentence before the pair. Those are understood, too, in any case; a pair in another language or form needs a
    question template that names its markers.
    """

    def __init__(self, prompts: PromptFormat) -> None:
        before, _, after = prompts.question.partition("{question}")
        self._question = _marker(_QUESTION, before)
        self._answer = _marker(_ANSWER, after)
        self._stop = prompts.stop

    def finished(self, text: str) -> bool:
        """Whether the text holds a whole answer, up to the stop string."""
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
    """A pair, a text or a passage that was not used, and why; `detail` says more where there is more."""

    reason: str
    question: str = ""
    answer: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Draft:
    """A passage, how many candidates were written for it, the pairs that hold and what was rejected."""

    passage: Passage
    candidates: int = 0
    pairs: tuple[Pair, ...] = ()
    rejected: tuple[Rejected, ...] = ()

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
        """SHA-256 (hex) of what drafts depend on beside the passages: the weights, the prompts, the settings."""
        model = self._lm.config.model_dump(mode="json", include={"dtype", "attention", "prompts"})
        settings = self._config.model_dump(mode="json", include=set(_WRITING))
        return sha256(json.dumps([self._lm.identity(), model, settings], sort_keys=True).encode()).hexdigest()

    def write(self, passages: Sequence[Passage]) -> list[Draft]:
        """One draft a passage, in order; a passage that cannot be used gets one with the reason and no pairs."""
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
        tokens = len(self._lm.encode(self._lm.config.prompts.passage_text(passage)))
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
        prompts = [self._prompt(passage) for passage in passages for _ in range(config.candidates)]
        numbers = [draws(f"{config.seed}/{p.id}", config.candidates, config.max_new_tokens) for p in passages]
        texts = sample(lm, prompts, torch.cat(numbers), config.temperature, config.top_p, self._parser.finished)
        n = config.candidates
        drafts = [self._read(passage, texts[i * n : (i + 1) * n]) for i, passage in enumerate(passages)]
        return self._drop_known(self._drop_unsupported(drafts))

    def _read(self, passage: Passage, texts: Sequence[Sampled]) -> Draft:
        pairs: dict[tuple[str, str], Pair] = {}
        rejected: list[Rejected] = []
        for item in texts:
            pair = self._parser.parse(item.text)
            key = (normalise(pair.question), normalise(pair.answer)) if pair else ("", "")
            reason = self._fault(item, pair) or (DUPLICATE if key in pairs else None)
            if pair is not None and reason is None:
                pairs[key] = pair
            else:
                rejected.append(_rejected(reason or UNPARSABLE, pair, item))
        return Draft(passage, len(texts), tuple(pairs.values()), tuple(rejected))

    def _fault(self, item: Sampled, pair: Pair | None) -> str | None:
        if not item.complete:
            return TOO_LONG
        if pair is None or not normalise(pair.question) or not normalise(pair.answer):
            return UNPARSABLE
        return TOO_LONG if len(self._lm.encode(pair.answer)) > self._config.max_answer_tokens else None

    def _drop_unsupported(self, drafts: Sequence[Draft]) -> list[Draft]:
        answers = iter(self._ask([(pair.question, [d.passage]) for d in drafts for pair in d.pairs]))
        judged = []
        for draft in drafts:
            told = [next(answers) for _ in draft.pairs]
            wrong = [p for p, text in zip(draft.pairs, told, strict=True) if not exact_match(text, [p.answer])]
            judged.append(_first_of_each_question(draft.without(wrong, UNSUPPORTED)))
        return judged

    def _drop_known(self, drafts: Sequence[Draft]) -> list[Draft]:
        answers = iter(self._ask([(pair.question, []) for d in drafts for pair in d.pairs]))
        judged = []
        for draft in drafts:
            told = [next(answers) for _ in draft.pairs]
            known = [p for p, text in zip(draft.pairs, told, strict=True) if exact_match(text, [p.answer])]
            judged.append(draft.without(known, KNOWN))
        return judged

    def _ask(self, questions: Sequence[tuple[str, list[Passage]]]) -> list[str]:
        """Greedy answers; a question that does not fit the context beside its passage gets none."""
        prompts = self._lm.config.prompts
        requests = [
            GenerationRequest(prompts.prompt(question, passages), (), self._config.max_answer_tokens)
            for question, passages in questions
        ]
        fitting = [i for i, request in enumerate(requests) if self._fits(request)]
        answers = dict.fromkeys(range(len(requests)), "")
        found = generate(self._lm, [requests[i] for i in fitting])
        answers.update({i: item.text for i, item in zip(fitting, found, strict=True)})
        return list(answers.values())

    def _fits(self, request: GenerationRequest) -> bool:
        try:
            check_fits(self._lm, request)
        except ModelError:
            return False
        return True


def read_line(line: bytes, problem: str = "") -> Passage | Draft:
    """The passage of one line of a corpus, or a draft that says what is wrong with the line."""
    try:
        return parse_passage(line, problem)
    except CorpusError as error:
        return Draft(Passage(shown(line), "", ""), rejected=(Rejected(BAD_LINE, detail=str(error)),))


def draft_of(record: dict[str, Any]) -> Draft:
    """The draft of which `asdict` made the record."""
    pairs = tuple(Pair(**item) for item in record["pairs"])
    rejected = tuple(Rejected(**item) for item in record["rejected"])
    return Draft(Passage(**record["passage"]), record["candidates"], pairs, rejected)


def _rejected(reason: str, pair: Pair | None, item: Sampled) -> Rejected:
    if pair is None:
        return Rejected(reason, detail=item.text[:_SHOWN_CHARACTERS])
    return Rejected(reason, pair.question, pair.answer)


def _first_of_each_question(draft: Draft) -> Draft:
    first: dict[str, Pair] = {}
    for pair in draft.pairs:
        first.setdefault(normalise(pair.question), pair)
    again = [pair for pair in draft.pairs if pair not in first.values()]
    return draft.without(again, DUPLICATE)
