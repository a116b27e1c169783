"""Meta-training: what one step computes and updates, dev scores, and one worker's run from start to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrad.data.questions import Question
from regrad.data.tasks import Task
from regrad.errors import TrainingError
from regrad.evaluation.metrics import Rules, exact_match, f1, score
from regrad.inference.decoding import GenerationRequest, generate
from regrad.inference.verification import verify_decoding
from regrad.meta_init import MetaInit
from regrad.models.half_weights import autocast
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.precision import choose_precision
from regrad.training.callbacks import Best, Listener
from regrad.training.checkpoint import DevScore, TrainState
from regrad.training.loop import Loop, Scoring, StepResult, resume
from regrad.training.meta.auto_strategy import BY_MEMORY, choose_strategy
from regrad.training.meta.collate import collate, group_questions, prompt_passages
from regrad.training.meta.config import DevConfig, InnerConfig, MetaTrainConfig, ShapeConfig
from regrad.training.meta.objective import MetaGradient, Point, adapt
from regrad.training.meta.optim import MetaParameters, OptimizerEngine, make_engine
from regrad.training.meta.reading import ReadingSums, means, reading_sums, reading_warning, spread
from regrad.training.meta.strategies import Strategy
from regrad.training.meta.task_plan import Lengths, TasksInMemory, check_dev_tasks, shape_task
from regrad.training.workers import Workers

META_INIT = "meta_init"
_BATCH_TASKS = 8


class MetaLearner:
    """One worker's side of meta-training: a `Learner` of tasks."""

    kind = "meta-training"
    product_name = META_INIT
    remedy = "lower inner.initial_step_size or optimizer.lr"

    def __init__(
        self,
        lm: LanguageModel,
        engine: OptimizerEngine,
        config: MetaTrainConfig,
        identity: str,
        notes: Mapping[str, Any] | None = None,
        workers: Workers = Workers(),
    ) -> None:
        workers.check(config.optimizer.batch_size)
        self._lm = lm
        self._engine = engine
        self._config = config
        self._notes = notes or {}
        self._workers = workers
        self._strategy: Strategy | None = None
        self._half = False
        self._latest: dict[str, float] = {}
        self.base = identity
        self.device = lm.device

    def prepare(self, batch: Sequence[Task], state: TrainState) -> str:
        """Choose precision and strategy; of what the workers would choose the leanest, so that all use the same one."""
        wanted, dtype = self._config.optimizer.precision, self._lm.config.dtype
        precision = choose_precision(wanted, self.device, dtype, state.decided, self._on_any)
        self._half = precision.half
        config, point, layer_wise = self._config, self._engine.point(), self._engine.layer_wise
        # `auto` measures the free memory, which differs after a resume, and strategies round differently: a resumed run
        # keeps the strategy that it began with.
        name = state.decided.get("strategy")
        reason = f"strategy {name}, as before"
        if name is None:
            first = collate(self._lm, batch[: config.optimizer.micro_batch], config.shape)
            with self._autocast():
                mine, reason = choose_strategy(
                    self._lm, point, first, config.strategy, config.inner, self._workers.here, layer_wise
                )
            votes = self._engine.total([float(mine.name == name) for name in BY_MEMORY])
            name = [name for name, count in zip(BY_MEMORY, votes, strict=True) if count][-1]
            state.decided["strategy"] = name
        chosen = config.strategy.model_copy(update={"name": name})
        self._strategy, _ = choose_strategy(self._lm, point, None, chosen, config.inner, layer_wise=layer_wise)
        return "; ".join(filter(None, (precision.note, reason)))

    def step(self, batch: Sequence[Task], factor: float) -> StepResult:
        """See `Learner`."""
        gradient, counts = self._gradient(batch)
        finite = all(bool(torch.isfinite(t).all()) for t in (gradient.loss, gradient.phi0, gradient.alpha))
        values = [float(gradient.loss), float(gradient.inner_loss)] if finite else [0.0, 0.0]
        # All workers skip together: one that did not would wait for the others in the all-reduce of `apply`.
        bad, loss, inner = self._engine.total([0.0 if finite else 1.0, *values])
        if bad:
            return StepResult(None, counts)
        self._engine.apply(gradient, factor)
        self._latest = {"inner_loss": inner / self._workers.count}
        if gradient.error is not None:
            self._latest["gradient_error"] = gradient.error
        return StepResult(loss / self._workers.count, counts)

    def numbers(self) -> dict[str, float]:
        """The passages' loss, the range of the step sizes, and the strategy's estimate of its error, if it has one."""
        sizes = self._engine.step_sizes().sort().values
        spread = {"low": sizes[0], "middle": sizes[len(sizes) // 2], "high": sizes[-1]}
        return {**self._latest, **{f"step_size_{name}": float(size) for name, size in spread.items()}}

    def tensors(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return self._engine.state()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Learner`."""
        self._engine.load(tensors)

    def product(self, state: TrainState) -> MetaInit:
        """The parameters as they are now, as a MetaInit."""
        inner, point = self._config.inner, self._engine.point()
        notes = {**self._notes, "steps": state.step, "skipped_steps": len(state.skipped)}
        notes["dev"] = [found.to_record() for found in state.scores]
        notes["losses"] = state.some_losses()
        return MetaInit(
            self._lm.config,
            self.base,
            self._lm.subspace,
            point.phi0.detach().float().cpu().clone(),
            self._engine.step_sizes(),
            inner.reduction,
            notes,
            step_size_mode=inner.step_size_mode,
            inner_steps=inner.steps,
            acts_on=inner.acts_on,
        )

    def score(self, dev: Sequence[Sequence[Task]], step: int) -> DevScore:
        """Exact match and F1, the means of the sets', and the questions of all; and the outer losses of `reading.py`.

        Each worker scores a part.
        """
        found = [self._sums(tasks) for tasks in dev]
        totals = self._engine.total([value for sums in found for value in (sums.exact_match, sums.f1, sums.questions)])
        exact, total_f1, counts = (totals[place::3] for place in range(3))
        mean_scores = [
            sum(total / max(count, 1) for total, count in zip(values, counts, strict=True)) / len(dev)
            for values in (exact, total_f1)
        ]
        questions = int(sum(counts)) // (self._workers.count if self._engine.layer_wise else 1)
        scores = {"exact_match": mean_scores[0], "f1": mean_scores[1], "questions": questions}
        return DevScore(step, {**scores, **self._reading(dev)})

    def remark(self, scores: Sequence[DevScore]) -> str:
        """A warning, once, if the run does not read."""
        config = self._config
        step_size = config.inner.initial_step_size
        return reading_warning(scores, config.optimizer.warmup_steps, config.scoring.reading, step_size)

    def _sums(self, dev: Sequence[Task]) -> Sums:
        """Of this worker's part of a set, but of all of it with sharded weights."""
        config = self._config
        tasks = self._shaped(dev, self._part(range(len(dev))))
        return score_tasks(self._lm, self._engine.point(), tasks, config.inner, config.shape, config.scoring)

    def _reading(self, dev: Sequence[Sequence[Task]]) -> dict[str, float]:
        """Each worker compares a part of the tasks that are chosen of each set."""
        most, config = self._config.scoring.reading.tasks, self._config
        if not most:
            return {}
        sums = []
        for tasks in dev:
            numbers = spread(len(tasks), most)
            # A worker needs two tasks to compare; where there are not enough for all, all compare all of them.
            shaped = self._shaped(tasks, numbers if len(numbers) < 2 * self._workers.count else self._part(numbers))
            with self._autocast():
                part = reading_sums(self._lm, self._engine.point(), shaped, config.inner, config.shape)
            sums.append(ReadingSums(*self._engine.total(astuple(part))))
        return means(sums)

    def _part(self, numbers: Sequence[int]) -> Sequence[int]:
        # Sharded weights are gathered layer by layer, so all workers have to run the same passes.
        return numbers if self._engine.layer_wise else self._workers.share(numbers)

    def _shaped(self, dev: Sequence[Task], numbers: Sequence[int]) -> list[Task]:
        """These dev tasks as training shapes them, but with all questions and no distractors."""
        shape = self._config.shape.model_copy(update={"questions": None, "distractor_probability": 0.0})
        return [shape_task(dev[number], shape, (), self._config.seed, number) for number in numbers]

    def _gradient(self, tasks: Sequence[Task]) -> tuple[MetaGradient, dict[str, int]]:
        """The mean over this worker's tasks, a micro-batch at a time; and their passages and tokens."""
        size = self._config.optimizer.micro_batch or len(tasks)
        parts, counts = [], {"passages": 0, "tokens": 0}
        assert self._strategy is not None
        for start in range(0, len(tasks), size):
            part = tasks[start : start + size]
            batch = collate(self._lm, part, self._config.shape)
            with self._autocast():
                gradient = self._strategy(self._lm, self._engine.point(), batch)
            parts.append(gradient.scaled(len(part) / len(tasks)))
            counts["passages"] += batch.passages.ids.shape[0]
            counts["tokens"] += batch.tokens
        return reduce(add, parts), counts

    def _on_any(self, here: bool) -> bool:
        (count,) = self._engine.total([float(here)])
        return count > 0

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self._lm, self._half)


@dataclass(frozen=True)
class Sums:
    """Summed exact match and F1, and the number of questions; they add up over batches and workers."""

    exact_match: float = 0.0
    f1: float = 0.0
    questions: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.exact_match + other.exact_match, self.f1 + other.f1, self.questions + other.questions)


def score_tasks(
    lm: LanguageModel,
    at: Point,
    tasks: Sequence[Task],
    inner: InnerConfig = InnerConfig(),
    shape: ShapeConfig = ShapeConfig(),
    config: DevConfig = DevConfig(),
) -> Sums:
    """Greedy answers, each question under its own passages' update, as a deployment would give them.

    The update is scaled by `config.gamma` (paper: at inference only).
    """
    total = Sums()
    scaled = Point(at.phi0, at.alpha * config.gamma)
    for start in range(0, len(tasks), _BATCH_TASKS):
        batch = tasks[start : start + _BATCH_TASKS]
        with torch.no_grad():
            updates_DP, _ = adapt(lm, scaled, collate(lm, batch, shape), inner.reduction, inner.steps)
        requests, questions = [], []
        for update, (_, asked) in zip(updates_DP.detach().cpu(), group_questions(batch), strict=True):
            for task, question in asked:
                shown = lm.config.prompts.ordered(prompt_passages(task, question, shape))
                prompt = lm.config.prompts.prompt_for(question.asked, shown)
                updates = lm.subspace.updates(update, inner.acts_on)
                requests.append(GenerationRequest(prompt, updates, config.max_new_tokens))
                questions.append(question.asked)
        answers = [generation.text for generation in generate(lm, requests)]
        for one, said in zip(questions, answers, strict=True):
            total += score_answer(one, said, config.rules)
    return total


def score_answer(question: Question, said: str, rules: Rules = "squad") -> Sums:
    """Both scores of a closed question are whether the right label or word can be read in the answer."""
    if question.kind != "open":
        right = float(score(question, said).correct)
        return Sums(right, right, 1)
    return Sums(float(exact_match(said, question.answers)), f1(said, question.answers, rules), 1)


def meta_loop(
    learner: MetaLearner,
    config: MetaTrainConfig,
    dev: Sequence[Sequence[Task]] = (),
    listener: Listener | None = None,
    workers: Workers = Workers(),
) -> Loop[Task]:
    """The loop of a run with these settings; it is scored if there are dev tasks."""
    scoring = Scoring(lambda step: learner.score(dev, step), config.scoring.every, learner.remark) if dev else None
    return Loop(learner, config.optimizer, config.checkpoints, config.watch, listener, scoring, workers)


def load_start(config: MetaTrainConfig) -> MetaInit | None:
    """The MetaInit that `start_from` names, if any.

    Raises `MetaInitError` as `MetaInit.load`, and `TrainingError` if its updates act on other tokens than the run's.
    """
    start = MetaInit.load(config.start_from) if config.start_from else None
    if start is not None and start.acts_on != config.inner.acts_on:
        raise TrainingError(
            f"the MetaInit to start from has updates that act on {start.acts_on}, but inner.acts_on is "
            f"{config.inner.acts_on}; set inner.acts_on={start.acts_on}, or train without start_from",
            code="start_from_acts_on",
            expected=start.acts_on,
        )
    return start


def meta_train_worker(
    config: MetaTrainConfig,
    batches: Callable[[int], Iterable[Sequence[Task]]],
    dev: Sequence[Sequence[Task]],
    notes: Mapping[str, Any],
    listener: Listener,
    device: torch.device | str,
    workers: Workers = Workers(),
    checkpoint: AbstractContextManager[Path | None] = nullcontext(),
) -> MetaInit:
    """One worker's run, from the start or from a checkpoint; `batches` gives its tasks from a step on.

    Raises `ModelError` for a model that could not be decoded with, `MetaInitError` if `start_from` is another model's,
    and `TrainingError` as `load_start`, `Loop.run` and `resume` do.
    """
    lm = load_language_model(config.model, device, sharded=config.optimizer.zero_stage == 3)
    verify_decoding(lm)  # before it is trained, a model is refused that the result could not be served or scored with
    identity = lm.identity()
    start = load_start(config)
    if start is not None:
        start.check_base(lm)
    parameters = MetaParameters(lm.subspace, config.inner, config.seed, start).to(lm.device)
    learner = MetaLearner(lm, make_engine(lm, parameters, config.optimizer), config, identity, notes, workers)
    state = resume(learner, checkpoint)
    state = meta_loop(learner, config, dev, listener, workers).run(batches(state.step), state)
    return learner.product(state)


def meta_train_in_process(config: MetaTrainConfig, device: str = "cpu") -> MetaInit:
    """The job with one worker and no cluster, from start to end; nothing is written, and there are no checkpoints.

    Raises `CorpusError`, `TrainingError` or `MetaInitError` as a job does.
    """
    tasks = TasksInMemory.read(config)
    plain = tasks.plan.config.optimizer.model_copy(update={"zero_stage": None})
    config = tasks.plan.config.model_copy(update={"optimizer": plain})
    start = load_start(config)
    parent = start.fingerprint if start else None
    notes = {"tasks": tasks.plan.summary, "parent": parent, "seed": config.seed, "workers": 1}
    best = Best("f1")
    lengths = Lengths.of(config.model)
    dev = [check_dev_tasks(uri, lengths, config.shape, config.scoring.max_new_tokens).read() for uri in config.dev]
    last = meta_train_worker(config, tasks.steps, dev, notes, best, device)
    return best.product if config.scoring.select == "best" and isinstance(best.product, MetaInit) else last
