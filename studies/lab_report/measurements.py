"""What the report measures in one process: latency, batches, that no weight changes, and bytes of a passage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from regrad.bank.codecs import CODECS
from regrad.bank.format import read_manifest
from regrad.data.corpora import read_passages
from regrad.data.passages import Passage
from regrad.errors import EvaluationError
from regrad.evaluation.config import EvalBatchConfig
from regrad.evaluation.runner import Generator
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Finished
from regrad.lab.files import CORPUS, people_questions
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.methods.base import Evidence, MethodSettings, open_question
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.methods.regrad import ReGradConfig, ReGradOnlineConfig
from regrad.methods.tta import TtaConfig
from regrad.models.loading import LanguageModel, load_language_model, weights_digest
from regrad.models.subspace import Update
from regrad.storage import Storage
from studies.lab_report.config import LabReportConfig

MEASURED = "measured.json"
_K = 3
_ROWS = 16
_NEW_TOKENS = 12
_TIMED_TOKENS = 8
_KNOWN = 100


def measure(config: LabReportConfig) -> str:
    """Write `measured.json`; returns one line. The bank's atoms are in memory when they are timed."""
    torch.set_num_threads(1)
    out = config.output
    seed = config.seeds[0]
    start = f"{out}/starts/regrad-{seed}"
    bank = f"{out}/banks/regrad-{seed}"
    lm = load_language_model(MetaInit.load(start).model, "cpu")
    corpus = list(read_passages(f"{out}/lab/{CORPUS}"))
    cached = ReGradConfig(name="regrad", meta_init=start, bank=bank)
    methods: dict[str, MethodSettings] = {
        "direct": PromptOnlyConfig(name="direct"),
        "rag": PromptOnlyConfig(name="rag"),
        "regrad": cached,
        "regrad+icl": ReGradConfig(name="regrad+icl", meta_init=start, bank=bank),
        "regrad-online": ReGradOnlineConfig(name="regrad-online", meta_init=start),
        "tta": TtaConfig(name="tta"),
    }
    asked = _asked(corpus, max(config.timed, config.batched))
    known = [item.question for item in people_questions(World().memorised, _KNOWN)]
    _unchanged(lm, cached, asked, [])  # fetches every atom once
    found = {
        "latency": _latencies(lm, methods, asked[: config.timed]),
        "batching": _batching(lm, cached, asked[: config.batched]),
        "unchanged": _unchanged(lm, cached, asked, known),
        "bytes": {
            "text": fmean(len(passage.text.encode()) for passage in corpus),
            **{f"gradient, {name}": make(lm.subspace).record_bytes for name, make in CODECS.items()},
            "PRAG's adapter, float32": read_manifest(Storage(f"{out}/banks/prag")).record_bytes,
        },
    }
    Storage(out).write(MEASURED, (json.dumps(found, indent=1) + "\n").encode())
    return f"{config.timed} questions timed, {config.batched} in batches; at {out}/{MEASURED}"


def _asked(corpus: Sequence[Passage], count: int) -> list[Evidence]:
    """Questions about held-out people, each with its person's passage and the next ones of the corpus."""
    place = {passage.id: number for number, passage in enumerate(corpus)}
    questions = people_questions(World().held_out[: len(corpus)], count)
    return [
        Evidence(
            open_question(item.question),
            tuple(corpus[(place[item.passage_id] + i) % len(corpus)] for i in range(_K)),
        )
        for item in questions
    ]


def _latencies(
    lm: LanguageModel, methods: Mapping[str, MethodSettings], asked: Sequence[Evidence]
) -> dict[str, list[float]]:
    """Milliseconds of each question by each method, one after the other, in an order that changes with the question.

    All answers have the same number of tokens; finding the passages is in none of the times. The first question of
    each method warms up and does not count.
    """
    endless = replace(lm, end_ids=())  # so that all answers have the same length
    answer = {name: _one_by_one(endless, lm, method) for name, method in methods.items()}
    for each in answer.values():
        each(asked[0])
    found: dict[str, list[float]] = {name: [] for name in answer}
    names = list(answer)
    for number, item in enumerate(asked):
        for turn in range(len(names)):
            name = names[(number + turn) % len(names)]
            started = time.perf_counter()
            answer[name](item)
            found[name].append(1e3 * (time.perf_counter() - started))
    return found


def _one_by_one(endless: LanguageModel, lm: LanguageModel, method: MethodSettings) -> Callable[[Evidence], None]:
    requests = _requests(lm, method)
    engine = Engine(endless)

    def answer(item: Evidence) -> None:
        heard: list[str | Finished | Exception] = []
        ((prompt, updates),) = requests([item])
        engine.submit(DecodingRequest(prompt, updates, _TIMED_TOKENS, stop=()), heard.append)
        while engine.active or engine.waiting:
            engine.step()
        if not isinstance(heard[-1], Finished):
            raise EvaluationError(f"a question could not be timed: {heard[-1]}", code="not_timed")

    return answer


def _batching(lm: LanguageModel, method: MethodSettings, asked: Sequence[Evidence]) -> dict[str, Any]:
    """Chunks of questions, each under its own update, asked one by one and then together: seconds of each chunk."""
    single = _batches(lm, method, 1)
    batch = _batches(lm, method, _ROWS)
    for answer in (single, batch):
        answer(asked[:1])
    different = 0
    alone = list[float]()
    together = list[float]()
    for start in range(0, len(asked), _ROWS):
        chunk = asked[start : start + _ROWS]
        began = time.perf_counter()
        one_by_one = [text for item in chunk for text in single([item])]
        middle = time.perf_counter()
        at_once = batch(chunk)
        together.append(time.perf_counter() - middle)
        alone.append(middle - began)
        different += sum(a != b for a, b in zip(one_by_one, at_once, strict=True))
    return {"questions": len(asked), "different": different, "alone": alone, "together": together}


def _unchanged(lm: LanguageModel, method: MethodSettings, asked: Sequence[Evidence], known: Sequence[str]) -> bool:
    """Whether, after questions under updates, every weight and every answer of the base to `known` is as before."""
    base = _batches(lm, PromptOnlyConfig(name="direct"), 32)
    ours = _batches(lm, method, 32)
    memorised = [Evidence(open_question(question)) for question in known]
    before = weights_digest(lm.model)
    answers = base(memorised)
    ours(asked)
    return weights_digest(lm.model) == before and base(memorised) == answers


def _batches(lm: LanguageModel, method: MethodSettings, rows: int) -> Callable[[Sequence[Evidence]], list[str]]:
    """A method's answers, in batches of so many rows."""
    requests = _requests(lm, method)
    generator = Generator(lm, EvalBatchConfig(rows=rows))

    def answer(asked: Sequence[Evidence]) -> list[str]:
        made = requests(asked)
        answers = generator.answers([DecodingRequest(prompt, updates, _NEW_TOKENS) for prompt, updates in made])
        return [found.text for found in answers]

    return answer


def _requests(
    lm: LanguageModel, settings: MethodSettings
) -> Callable[[Sequence[Evidence]], list[tuple[str, tuple[Update, ...]]]]:
    """The prompt and the updates that a method makes of each question, with the atoms that its settings name."""
    method = settings.open(lm)
    atoms = method.open_atoms()

    def make(asked: Sequence[Evidence]) -> list[tuple[str, tuple[Update, ...]]]:
        return [(plan.prompt.text(lm.config.prompts), plan.updates) for plan in method.plan(asked, atoms)]

    return make
