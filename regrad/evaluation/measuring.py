"""One process, one model: how long one question takes by each method, what batches give, and that no weight changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from regrad.errors import EvaluationError
from regrad.evaluation.config import EvalBatchConfig
from regrad.evaluation.generation import Generator
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Finished
from regrad.methods.base import Evidence, MethodSettings
from regrad.models.loading import LanguageModel, weights_digest


class Endless(LanguageModel):
    """A model without a token that ends an answer, so that all answers have the same length."""

    @property
    def eos(self) -> list[int]:
        """None."""
        return []


@dataclass(frozen=True)
class Batching:
    """Answers of the same questions one by one and together, each under its own update: seconds of each chunk."""

    questions: int
    different: int
    alone: list[float]
    together: list[float]


def latencies(
    lm: LanguageModel, methods: Mapping[str, MethodSettings], asked: Sequence[Evidence], new_tokens: int
) -> dict[str, list[float]]:
    """Milliseconds of each question by each method, one after the other, in an order that changes with the question.

    All answers have the same number of tokens; finding the passages is in none of the times. The first question of
    each method warms up and does not count.
    """
    endless = Endless(lm.model, lm.tokenizer, lm.lora, lm.config, lm.blocks)
    ways = {name: _way(endless, lm, method, new_tokens) for name, method in methods.items()}
    for way in ways.values():
        way(asked[0])
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number, item in enumerate(asked):
        for turn in range(len(names)):
            name = names[(number + turn) % len(names)]
            started = time.perf_counter()
            ways[name](item)
            found[name].append(1e3 * (time.perf_counter() - started))
    return found


def batching(
    lm: LanguageModel, method: MethodSettings, asked: Sequence[Evidence], rows: int, new_tokens: int
) -> Batching:
    """Chunks of `rows` questions, each asked one by one and then together."""
    opened, single, batch = Opened(lm, method), _generator(lm, 1), _generator(lm, rows)
    for generator in (single, batch):
        opened.answers(generator, asked[:1], new_tokens)
    different, alone, together = 0, [], []
    for start in range(0, len(asked), rows):
        chunk = asked[start : start + rows]
        began = time.perf_counter()
        one_by_one = [text for item in chunk for text in opened.answers(single, [item], new_tokens)]
        middle = time.perf_counter()
        at_once = opened.answers(batch, chunk, new_tokens)
        together.append(time.perf_counter() - middle)
        alone.append(middle - began)
        different += sum(a != b for a, b in zip(one_by_one, at_once, strict=True))
    return Batching(len(asked), different, alone, together)


def unchanged(
    lm: LanguageModel, method: MethodSettings, asked: Sequence[Evidence], known: Sequence[str], new_tokens: int
) -> bool:
    """Whether, after questions under updates, every weight and every answer of the base to `known` is as before."""
    generator = _generator(lm, 32)

    def base() -> list[str]:
        prompts = [lm.config.prompts.prompt(question) for question in known]
        return [answer.text for answer in generator.answers(prompts, [None] * len(prompts), new_tokens)]

    before, answers = weights_digest(lm.model), base()
    Opened(lm, method).answers(generator, asked, new_tokens)
    return weights_digest(lm.model) == before and base() == answers


def _way(
    endless: LanguageModel, lm: LanguageModel, method: MethodSettings, new_tokens: int
) -> Callable[[Evidence], None]:
    opened, engine = Opened(lm, method), Engine(endless)

    def ask(item: Evidence) -> None:
        heard: list[str | Finished | Exception] = []
        ((prompt, update),) = opened.requests([item])
        engine.submit(DecodingRequest(prompt, update, new_tokens, stop=()), heard.append)
        while engine.active or engine.waiting:
            engine.step()
        if not isinstance(heard[-1], Finished):
            raise EvaluationError(f"a question could not be timed: {heard[-1]}")

    return ask


class Opened:
    """A method on a model, with the atoms that its settings name."""

    def __init__(self, lm: LanguageModel, settings: MethodSettings) -> None:
        self._prompts = lm.config.prompts
        self._method = settings.open(lm)
        self._atoms = self._method.open_atoms()

    def requests(self, asked: Sequence[Evidence]) -> list[tuple[str, Tensor | None]]:
        """The prompt and the update of each question."""
        plans = self._method.plan(asked, self._atoms)
        return [(plan.prompt.text(self._prompts), plan.update) for plan in plans]

    def answers(self, generator: Generator, asked: Sequence[Evidence], new_tokens: int) -> list[str]:
        """What is generated for each question."""
        prompts, updates = zip(*self.requests(asked), strict=True)
        return [answer.text for answer in generator.answers(prompts, updates, new_tokens)]


def _generator(lm: LanguageModel, rows: int) -> Generator:
    return Generator(lm, EvalBatchConfig(rows=rows))
