"""Running cells: find passages, plan answers, decode them in batches, score, keep the records. Knows no Ray."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from regrad.data.question_sets import read_questions
from regrad.data.questions import Question
from regrad.errors import EvaluationError, TokenOutOfVocabulary
from regrad.evaluation.answer_parsing.answers import prediction_of
from regrad.evaluation.config import EvalBatchConfig, EvalConfig
from regrad.evaluation.metrics import score
from regrad.evaluation.one_by_one import OneByOne
from regrad.evaluation.output import CellResult, Output, Seconds
from regrad.evaluation.passages import FoundPassages, PassageFinder
from regrad.evaluation.plan import PlannedCell, questions_digest
from regrad.evaluation.records import Cell, Record
from regrad.inference.decoding import decode_all
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Finished
from regrad.methods.base import AtomProvider, Evidence, Method, Note, Plan
from regrad.methods.policies import PromptFitter
from regrad.models.loading import LanguageModel, load_language_model
from regrad.text import counted

Done = Callable[[int, float], object]
"""Receives every few seconds how many questions were answered since the last time, and in how many seconds."""

_TOLD_SECONDS = 5.0


def unheard(questions: int, seconds: float) -> None:
    """For runs that report no progress."""


class Pulse:
    """Tells how many questions are answered: when some seconds have passed, and at the end of each batch."""

    def __init__(self, done: Done) -> None:
        self._done = done
        self._answered = self._told = 0
        self._last = time.perf_counter()

    def begin(self) -> None:
        """A batch begins."""
        self._answered = self._told = 0
        self._last = time.perf_counter()

    def one(self) -> None:
        """One of the batch's questions is answered."""
        self._answered += 1
        if time.perf_counter() - self._last >= _TOLD_SECONDS:
            self.tell(self._answered)

    def tell(self, answered: int) -> None:
        """Report that this many of the batch's questions are answered."""
        if answered > self._told:
            now = time.perf_counter()
            self._done(answered - self._told, now - self._last)
            self._told, self._last = answered, now


class Generator:
    """Greedy answers of one model; for one thread. The decoding engine without its thread."""

    # Rows leave the batch as they finish and others take their place, so short answers do not wait for long ones.

    def __init__(self, lm: LanguageModel, config: EvalBatchConfig) -> None:
        self._engine = Engine(lm, config.rows, config.cached_tokens)

    def answers(
        self, requests: Sequence[DecodingRequest], finished: Callable[[], None] = lambda: None
    ) -> list[Finished]:
        """The answers in order, each under its own updates; `finished` is called after each.

        Raises `PromptTooLong` for a prompt that does not fit, and of those that fail the error of the first in order.
        """
        return decode_all(self._engine, requests, finished)


_NOT_ASKED = Finished("", "stop", 0, 0, 0.0, 0.0, 0.0, 1)


class CellRunner:
    """Runs cells of one language model, one after the other."""

    def __init__(self, lm: LanguageModel, config: EvalConfig) -> None:
        self._lm = lm
        self._config = config
        self._generator = Generator(lm, config.batch)
        self._fitter = PromptFitter(lm, lm.config.prompts, config.on_overflow, config.context_tokens)

    def run(self, cell: PlannedCell, done: Done = unheard) -> CellResult:
        """Answer and score all questions; `done` is called every few seconds and after each batch of them.

        Raises `EvaluationError` if the set has changed since the plan was made.
        """
        # 1. Open what the cell needs.
        questions = read_questions(cell.set)
        if questions_digest(questions) != cell.questions_digest:
            raise EvaluationError(
                f"set {cell.set.name!r}: {cell.set.path} has changed since the run began; start the run again",
                code="questions_changed",
                set=cell.set.name,
            )
        finder = PassageFinder(cell.set.passages, cell.seed)
        method = cell.method.open(self._lm)
        atoms = method.open_atoms()

        # 2. What is slow only the first time is not part of the times: opening the index, the first forward pass.
        [found] = finder.find(questions[:1], cell.k)
        _, request = self._fitted(cell, Plan(method.prompt(_evidence(cell, questions[0], found))))
        self._generator.answers([replace(request or DecodingRequest(""), max_new_tokens=1)])

        # 3. Answer in batches.
        seconds = Seconds(retrieval=cell.demonstrations.seconds)
        records = []
        pulse = Pulse(done)
        size = self._config.batch.questions
        if cell.method.one_by_one is not None:  # as many prompts, and updates, as of another method
            size = max(1, size // max(1, cell.k))
        for start in range(0, len(questions), size):
            batch = questions[start : start + size]
            pulse.begin()
            records += self._batch(cell, batch, finder, method, atoms, seconds, pulse)
            pulse.tell(len(batch))
        device = f"CPU ({platform.machine()}, {counted(torch.get_num_threads(), 'thread')})"
        if self._lm.device.type == "cuda":
            device = torch.cuda.get_device_name(self._lm.device)
        return CellResult(records, seconds, device)

    def _batch(
        self,
        cell: PlannedCell,
        questions: Sequence[Question],
        finder: PassageFinder,
        method: Method,
        atoms: AtomProvider,
        seconds: Seconds,
        pulse: Pulse,
    ) -> list[Record]:
        with seconds.measured("retrieval"):
            found = finder.find(questions, cell.k)
        answering = Seconds()
        evidences = [_evidence(cell, *pair) for pair in zip(questions, found, strict=True)]
        if cell.method.one_by_one is not None:
            apart = OneByOne(self._lm, cell.method.one_by_one, method, atoms, finder.temperature)
            with answering.measured("update"):
                each = apart.plans(evidences)
            with answering.measured("generation"):
                decode = self._generator.answers
                chosen = apart.answers(evidences, each, partial(self._fitted, cell), decode, pulse.one)
            plans, answers = [plan for plan, _ in chosen], [answer or _NOT_ASKED for _, answer in chosen]
        else:
            with answering.measured("update"):
                plans = method.answer_plans(evidences, atoms)
            with answering.measured("generation"):
                fitted = [self._fitted(cell, plan) for plan in plans]
                plans = [plan for plan, _ in fitted]
                asked = iter(self._generator.answers([request for _, request in fitted if request], pulse.one))
                answers = [next(asked) if request else _NOT_ASKED for _, request in fitted]
        seconds.update += answering.update
        seconds.generation += answering.generation
        milliseconds = 1e3 * (answering.update + answering.generation) / len(questions)
        rows = zip(questions, found, plans, answers, strict=True)
        return [_record(cell, milliseconds, *row) for row in rows]

    def _fitted(self, cell: PlannedCell, plan: Plan) -> tuple[Plan, DecodingRequest | None]:
        """The plan with a prompt that fits, and what the model is asked: nothing if it does not know all its tokens."""
        max_new_tokens = cell.set.max_new_tokens or self._config.max_new_tokens
        try:
            fitted = self._fitter.fitted(plan, max_new_tokens)
        except TokenOutOfVocabulary as error:  # it concerns that question alone, and no setting would help
            return replace(plan, notes=(*plan.notes, Note("not asked", str(error)))), None
        return fitted.plan, DecodingRequest(fitted.text, fitted.plan.updates, max_new_tokens, ids=fitted.ids)


def _evidence(cell: PlannedCell, question: Question, found: FoundPassages) -> Evidence:
    shown = cell.demonstrations.of.get(question.id, ())
    return Evidence(question, found.passages, found.scores, shown, question.turns)


def _record(
    cell: PlannedCell,
    milliseconds: float,
    question: Question,
    found: FoundPassages,
    plan: Plan,
    answer: Finished,
) -> Record:
    prediction = prediction_of(question, answer.text, cell.set.prag_style_cut, cell.set.reader)
    # A closed question is scored by all that was generated, as the scoring reads the label itself.
    scored = prediction if question.kind == "open" else answer.text
    return Record.of(
        Cell(cell.set.name, cell.method.name, cell.model_name, cell.k, cell.seed),
        question,
        answer.text,
        prediction,
        score(question, scored, cell.set.scoring_rules, cell.set.reader),
        passage_ids=tuple(passage.id for passage in found.passages),
        passage_scores=found.scores,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        milliseconds=milliseconds,
        bytes_fetched=plan.bytes_fetched,
        note="; ".join(map(str, plan.notes)),
        demonstration_ids=tuple(one.id for one in cell.demonstrations.of.get(question.id, ())),
    )


class Cells:
    """Runs cells and writes their records; keeps the model of the last one."""

    def __init__(self, config: EvalConfig, device: str | Sequence[str]) -> None:
        self._config = config
        self._device = device
        self._output = Output(config.output)
        self._runner: tuple[str, CellRunner] | None = None

    def run(self, cell: PlannedCell, done: Done = unheard) -> None:
        """Answer and score the cell's questions and write the records; `done` is called as by `CellRunner.run`."""
        batch = self._config.batch
        try:
            if self._runner is None or self._runner[0] != cell.model_name:
                self._runner = None  # there may not be enough memory for two models at once
                self._runner = cell.model_name, CellRunner(load_language_model(cell.model, self._device), self._config)
            result = self._runner[1].run(cell, done)
        except torch.OutOfMemoryError as error:
            raise EvaluationError(
                f"{cell.label}: the GPU's memory is too small for batch.rows={batch.rows} and "
                f"batch.questions={batch.questions}; lower them",
                code="out_of_memory",
                rows=batch.rows,
                questions=batch.questions,
            ) from error
        self._output.save(cell, result, batch.rows)
