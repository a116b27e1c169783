"""Running cells: find passages, make updates, decode in batches, score, keep the records. Knows no Ray."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from regrad.data.question_sets import read_questions
from regrad.data.questions import Question
from regrad.errors import EvaluationError
from regrad.evaluation.answer_parsing.answers import prediction_of
from regrad.evaluation.cache_keys import questions_digest
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.generation import Fitted, Generator, fit
from regrad.evaluation.metrics import score
from regrad.evaluation.output import CellResult, Output, Seconds
from regrad.evaluation.passages import Found, PassageFinder
from regrad.evaluation.plan import PlannedCell
from regrad.evaluation.records import Record
from regrad.inference.rows import Finished
from regrad.methods.base import AtomProvider, Evidence, Method, Plan, Prompt
from regrad.models.loading import LanguageModel, load_language_model

Done = Callable[[int, float], object]
"""Hears of each batch how many questions it had and how many seconds it took."""


def unheard(questions: int, seconds: float) -> None:
    """Where nobody asks for progress."""


class CellRunner:
    """Runs cells of one language model, one after the other."""

    def __init__(self, lm: LanguageModel, config: EvalConfig) -> None:
        self._lm, self._config = lm, config
        self._generator = Generator(lm, config.batch)

    def run(self, cell: PlannedCell, done: Done = unheard) -> CellResult:
        """Answer and score all questions; `done` hears of each batch of them, and its seconds.

        Raises `EvaluationError` if the set is not any more what the plan was made of.
        """
        questions = read_questions(cell.set)
        if questions_digest(questions) != cell.questions_digest:
            raise EvaluationError(
                f"set {cell.set.name!r}: {cell.set.path} has changed since the run began; start again"
            )
        finder = PassageFinder(cell.set.passages, cell.seed)
        method = cell.method.open(self._lm)
        atoms = method.open_atoms()
        self._warm(finder, cell, method, questions[0])
        seconds, records = Seconds(), []
        size = self._config.batch.questions
        for start in range(0, len(questions), size):
            batch, began = questions[start : start + size], time.perf_counter()
            records += self._batch(cell, batch, finder, method, atoms, seconds)
            done(len(batch), time.perf_counter() - began)
        return CellResult(records, seconds, _device(self._lm))

    def _warm(self, finder: PassageFinder, cell: PlannedCell, method: Method, question: Question) -> None:
        """What is slow the first time only: opening the index, the first forward pass."""
        found = finder.find(question, cell.k) if cell.k else Found(())
        prompt = self._fitted(cell, method.prompt(_evidence(cell, question, found))).prompt
        self._generator.answers([prompt], [None], 1)

    def _batch(
        self,
        cell: PlannedCell,
        questions: Sequence[Question],
        finder: PassageFinder,
        method: Method,
        atoms: AtomProvider,
        seconds: Seconds,
    ) -> list[Record]:
        with seconds.measured("retrieval"):
            found = [finder.find(question, cell.k) if cell.k else Found(()) for question in questions]
        answering = Seconds()
        with answering.measured("update"):
            plans = method.plan([_evidence(cell, *pair) for pair in zip(questions, found, strict=True)], atoms)
        with answering.measured("generation"):
            fitted = [self._fitted(cell, plan.prompt) for plan in plans]
            updates = [plan.update for plan in plans]
            answers = self._generator.answers([one.prompt for one in fitted], updates, self._most(cell))
        seconds.update += answering.update
        seconds.generation += answering.generation
        milliseconds = 1e3 * (answering.update + answering.generation) / len(questions)
        rows = zip(questions, found, plans, fitted, answers, strict=True)
        return [_record(cell, milliseconds, *row) for row in rows]

    def _fitted(self, cell: PlannedCell, prompt: Prompt) -> Fitted:
        drop = self._config.too_long == "drop"
        return fit(self._lm, prompt, self._most(cell), self._config.context_tokens, drop)

    def _most(self, cell: PlannedCell) -> int:
        return cell.set.max_new_tokens or self._config.max_new_tokens


def _evidence(cell: PlannedCell, question: Question, found: Found) -> Evidence:
    return Evidence(question, found.passages, found.scores, cell.demonstrations)


def _record(
    cell: PlannedCell,
    milliseconds: float,
    question: Question,
    found: Found,
    plan: Plan,
    fitted: Fitted,
    answer: Finished,
) -> Record:
    dropped = (
        f"{fitted.dropped} of {len(found.passages)} passages did not fit into the prompt" if fitted.dropped else ""
    )
    prediction = prediction_of(question, answer.text, cell.set.cut)
    scored = prediction if question.kind == "open" else answer.text
    return Record(
        set=cell.set.name,
        method=cell.method.name,
        model=cell.model_name,
        k=cell.k,
        seed=cell.seed,
        question_id=question.id,
        question=question.question,
        answers=question.answers,
        kind=question.kind,
        group=question.group,
        raw=answer.text,
        prediction=prediction,
        **asdict(score(question, scored, cell.set.scoring_rules)),
        passage_ids=tuple(passage.id for passage in found.passages),
        passage_scores=found.scores,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        milliseconds=milliseconds,
        bytes_fetched=plan.bytes_fetched,
        note="; ".join([*map(str, plan.notes), *([dropped] if dropped else [])]),
    )


def _device(lm: LanguageModel) -> str:
    if lm.device.type == "cuda":
        return torch.cuda.get_device_name(lm.device)
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {threads} thread{'s' * (threads > 1)})"


class Cells:
    """Runs cells and writes their records; keeps the model of the last one."""

    def __init__(self, config: EvalConfig, device: str) -> None:
        self._config, self._device, self._output = config, device, Output(config.output)
        self._runner: tuple[str, CellRunner] | None = None

    def run(self, cell: PlannedCell, done: Done = unheard) -> None:
        """Answer and score the cell's questions and write the records; `done` hears of each batch and its seconds."""
        try:
            result = self._runner_of(cell).run(cell, done)
        except torch.OutOfMemoryError as error:
            raise EvaluationError(
                f"{cell.label}: the GPU's memory is too small for batch.rows={self._config.batch.rows} and "
                f"batch.questions={self._config.batch.questions}; lower them"
            ) from error
        self._output.save(cell, result, self._config.batch.rows)

    def _runner_of(self, cell: PlannedCell) -> CellRunner:
        if self._runner is None or self._runner[0] != cell.model_name:
            self._runner = None  # two models at once may be more than there is room for
            self._runner = cell.model_name, CellRunner(load_language_model(cell.model, self._device), self._config)
        return self._runner[1]
