"""What one step of training a retriever computes and updates: what finds passages, and the generator if asked for."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from regrad.data.questions import Question
from regrad.errors import RetrievalError, TrainingError
from regrad.retrieval.base import Retriever, open_retriever
from regrad.retrieval.dense import DenseRetriever
from regrad.training.checkpoint import TrainState
from regrad.training.loop import StepResult, Unchanged
from regrad.training.module_steps import AdamWSettings, ModuleSteps, make_steps
from regrad.training.retriever.artefact import TRAINED, Trained
from regrad.training.retriever.candidates import Union
from regrad.training.retriever.chains import NO_STATE
from regrad.training.retriever.config import DroConfig, JsaConfig, RetrieverTrainConfig
from regrad.training.retriever.expectation import Expectation
from regrad.training.retriever.finder import DenseFinder, Finder
from regrad.training.retriever.generator import TrainedGenerator
from regrad.training.retriever.likelihood import Asked, Likelihood
from regrad.training.retriever.objectives import Candidates, Objected, log_softmax, make_objective
from regrad.training.retriever.passage_side import Refresher
from regrad.training.retriever.selector import SelectorFinder
from regrad.training.workers import Workers

T = TypeVar("T")
_MOST_KNOWN = 1 << 20  # likelihoods, some 200 bytes each


@dataclass(frozen=True)
class NumberedQuestion:
    """A training question and its number among all of them, by which its chain and its likelihoods are kept."""

    number: int
    question: Question


def open_trained_on(config: RetrieverTrainConfig, device: torch.device | str) -> Retriever:
    """The index to train on: as `open_dense`, or with a selector any that has k passages."""
    if config.selector is None:
        return open_dense(config.index, config.k, device)
    retriever = open_retriever(config.index)
    _check_enough(config.index, retriever, config.k)
    return retriever


def open_dense(uri: str, k: int, device: torch.device | str) -> DenseRetriever:
    """The index to train on; raises `RetrievalError` if it is not dense or not exact, `TrainingError` if it has few."""
    retriever: Retriever = open_retriever(uri)
    if not isinstance(retriever, DenseRetriever):
        raise RetrievalError(
            f"the index at {uri} is of kind {retriever.card.kind}, and only a dense one has an encoder to train; make "
            "one with `regrad index --set dense.encoder.path=...`",
            code="not_dense",
            uri=uri,
            found=retriever.card.kind,
        )
    _check_enough(uri, retriever, k)
    retriever.encoder.module.to(device)
    return retriever


def _check_enough(uri: str, retriever: Retriever, k: int) -> None:
    if retriever.card.passages < k:
        raise TrainingError(
            f"the index at {uri} has {retriever.card.passages} passages and k is {k}: set k to at most that, or index "
            "a larger corpus",
            code="fewer_passages_than_k",
            passages=retriever.card.passages,
            k=k,
        )


class RetrieverLearner:
    """One worker's side of training a retriever: a `Learner` of questions.

    A likelihood is computed once for each question and passage if the generator stays as it is, and the latest million
    are kept; one that is a `TrainedGenerator` takes part in every step.
    """

    kind, product_name = "retriever", TRAINED
    remedy = "lower optimizer.lr or raise temperature"

    def __init__(
        self,
        config: RetrieverTrainConfig,
        retriever: Retriever,
        likelihood: Likelihood | TrainedGenerator,
        questions: int,
        device: torch.device,
        base: str = "",
        notes: Mapping[str, Any] | None = None,
        workers: Workers = Workers(),
        refresher: Refresher | None = None,
    ) -> None:
        workers.check(config.optimizer.batch_size)
        self._config, self._likelihood = config, likelihood
        self._objective = make_objective(config.objective)
        if isinstance(retriever, DenseRetriever) and config.selector is None:
            needs = self._objective.needs_posterior
            self._finder: Finder = DenseFinder(config, retriever, needs, device, workers, refresher)
        else:
            self._finder = SelectorFinder(config, retriever, device)
        self._generator: TrainedGenerator | None = None
        if config.generator is not None:
            self._generator = cast(TrainedGenerator, likelihood)
        self._steps = self._made_steps(workers)
        self._expectation: Expectation | None = None
        if isinstance(config.objective, DroConfig):
            trained = self._steps.module
            self._expectation = Expectation(
                config.objective, config.seed, self._finder, likelihood, trained, self._changed
            )
        self.device, self._workers, self._notes = device, workers, notes or {}
        self.base = hashlib.sha256(f"{base}|{self._finder.digest}".encode()).hexdigest()
        keeps = isinstance(config.objective, JsaConfig) and config.objective.keep_chain
        self._chains = torch.full((questions if keeps else 0,), NO_STATE)
        self._known: dict[tuple[int, int], float] = {}
        self._numbers: dict[str, float] = {}
        self._step = 0

    def _made_steps(self, workers: Workers) -> ModuleSteps:
        config, optimizer = self._config, self._config.optimizer
        parts = dict(self._finder.parts())
        if self._generator is not None and config.generator is not None:
            parts["generator"] = (self._generator.module, config.generator.lr)
        groups = [(list(module.parameters()), lr) for module, lr in parts.values()]
        settings = AdamWSettings(optimizer.betas, optimizer.weight_decay, optimizer.clip, optimizer.zero_stage)
        return make_steps(nn.ModuleDict({name: part for name, (part, _) in parts.items()}), groups, settings, workers)

    def _changed(self) -> None:
        if self._generator is not None:
            self._generator.moved()

    def prepare(self, batch: Sequence[NumberedQuestion], state: TrainState) -> str:
        """See `Learner`."""
        self._step = state.step
        return ""

    def step(self, batch: Sequence[NumberedQuestion], factor: float) -> StepResult:
        """See `Learner`."""
        # 1. What is due before anything is changed; then what the objective looks at, and what it says of it.
        if self._finder.before(self._step, [item.question for item in batch]) and self._expectation is not None:
            self._expectation.forget()
        union, found = self._everywhere(lambda: self.candidates(batch))
        # A step's draws follow from seed, step and worker alone, so a resumed run repeats them.
        key = hashlib.sha256(f"{self._config.seed}/{self._step}/{self._workers.rank}".encode())
        draws = torch.Generator().manual_seed(int.from_bytes(key.digest()[:8], "big") >> 1)
        self._step += 1
        counts = {"questions": len(batch), "candidates": int(union.present.sum())}
        finite = torch.isfinite(found.prior).all() & torch.isfinite(found.posterior).all()
        if not self._steps.everywhere(finite):
            return StepResult(None, counts)

        # 2. Gradients of what finds, and of the generator by what each likelihood counts for, and a step by both.
        objected, loss = self._everywhere(lambda: self._differentiated(batch, union, found, draws))
        if not self._steps.step(factor):
            return StepResult(None, counts)
        self._changed()

        # 3. What is kept of it.
        if len(self._chains) and objected.states is not None:
            rows_B = union.rows.gather(1, objected.states[:, None])[:, 0]
            self._chains[[item.number for item in batch]] = rows_B.cpu()
        self._numbers = {
            "answer_log_likelihood": float(_log_likelihood(found).mean()),
            "candidates": counts["candidates"] / len(batch),
            **objected.numbers,
            **self._finder.numbers(self._step),
        }
        return StepResult(float(self._workers.mean(loss)), counts)

    def _everywhere(self, action: Callable[[], T]) -> T:
        """What it gives here; if it fails on one worker, all raise `Unchanged`, and none waits for that one."""
        found: list[T] = []
        problem: Exception | None = None
        try:
            found.append(action())
        except Exception as error:  # whatever it is, the parameters are as they were before the step
            problem = error
        failure = self._workers.failure(problem, self.device)
        if failure is not None:
            raise Unchanged(failure)
        return found[0]

    def _differentiated(
        self, batch: Sequence[NumberedQuestion], union: Union, found: Candidates, draws: torch.Generator
    ) -> tuple[Objected, Tensor]:
        """What the objective says, and its loss, by which all parameters have their gradients."""
        objected = self._objective(found, draws)
        loss = objected.loss.mean()
        likelihood = found.likelihood if found.lists is None else found.lists.likelihood
        self._steps.differentiate(loss, [likelihood])
        if self._generator is not None:
            self._add_generators_gradient(self._generator, batch, union, found)
        return objected, loss.detach()

    def candidates(self, batch: Sequence[NumberedQuestion]) -> tuple[Union, Candidates]:
        """The passages that each question may rest on, and all that an objective wants to know of them."""
        questions, trained = [item.question for item in batch], self._generator is not None
        if self._expectation is not None:
            union, lists = self._expectation.of([(item.number, item.question) for item in batch], self._step)
            prior_BU = self._finder.score(questions, union)
            lists = replace(lists, likelihood=lists.likelihood.clone().requires_grad_(trained))
            nothing_BU = torch.zeros_like(prior_BU.detach())
            masks = (union.present, union.by_prior, union.by_posterior)
            return union, Candidates(prior_BU, prior_BU, nothing_BU, *masks, lists=lists)
        kept_B = torch.full((len(batch),), NO_STATE)
        if len(self._chains):
            kept_B = self._chains[[item.number for item in batch]]
        found = self._finder.find(questions, kept_B)
        union = found.union
        likelihood_BU = self._likelihoods(batch, union).to(self.device).requires_grad_(trained)
        masks = (union.present, union.by_prior, union.by_posterior)
        return union, Candidates(found.prior, found.posterior, likelihood_BU, *masks, union.start)

    def _likelihoods(self, batch: Sequence[NumberedQuestion], union: Union) -> Tensor:
        """[B, U], 0 where no passage is; what is not known yet is computed, all of it together."""
        places = [(b, u, int(union.rows[b, u])) for b, u in union.present.nonzero().tolist()]
        if self._generator is not None:
            self._known = {}  # by another generator
        unknown = {(batch[b].number, row): b for b, _, row in places if (batch[b].number, row) not in self._known}
        if unknown:
            asked = self._asked([(batch[b].question, row) for (_, row), b in unknown.items()])
            self._known.update(zip(unknown, self._likelihood.of(asked).tolist(), strict=True))
        likelihood_BU = torch.zeros(union.rows.shape)
        for b, u, row in places:
            likelihood_BU[b, u] = self._known[batch[b].number, row]
        for pair in list(itertools.islice(self._known, max(0, len(self._known) - _MOST_KNOWN))):
            del self._known[pair]
        return likelihood_BU

    def _asked(self, wanted: Sequence[tuple[Question, int]]) -> list[Asked]:
        """Questions with the passages at these rows."""
        passages = self._finder.passages(sorted({row for _, row in wanted}))
        return [(question, (passages[row],)) for question, row in wanted]

    def _add_generators_gradient(
        self, generator: TrainedGenerator, batch: Sequence[NumberedQuestion], union: Union, found: Candidates
    ) -> None:
        """The gradient of the objective by the generator's parameters, over the pairs or lists that it depends on."""
        # Where the objective does not look, the derivative is zero: nothing is read again for it.
        if found.lists is not None and self._expectation is not None:
            expectation, orderings = self._expectation, found.lists.orderings
            weights, places = _counting(found.lists.likelihood.grad)
            asked = [expectation.asked(batch[b].question, union.rows[b], orderings[b, i]) for b, i in places]
        else:
            weights, places = _counting(found.likelihood.grad, union.present)
            asked = self._asked([(batch[b].question, int(union.rows[b, u])) for b, u in places])
        (parameter,) = generator.module.parameters()
        parameter.grad = generator.gradient(asked, weights).to(parameter)

    def numbers(self) -> dict[str, float]:
        """See `Learner`."""
        return self._numbers

    def tensors(self) -> dict[str, Tensor]:
        """See `Learner`; the states of kept chains, and what an iteration or a refresh began with, too."""
        expected = self._expectation.tensors() if self._expectation is not None else {}
        return {**self._steps.tensors(), **self._finder.tensors(), **expected, "chains": self._chains.clone()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Learner`."""
        self._steps.load(tensors)
        self._chains = tensors["chains"].clone()
        self._changed()
        self._finder.load(tensors)
        if self._expectation is not None:
            self._expectation.load(tensors)

    def product(self, state: TrainState) -> Trained:
        """What was trained as it is now."""
        notes = {**self._notes, "steps": state.step, "skipped_steps": len(state.skipped), "losses": state.some_losses()}
        notes |= {"numbers": self._numbers}
        generator = self._generator.product(notes) if self._generator is not None else None
        return self._finder.product(notes, generator)


def _counting(weights_BK: Tensor | None, among_BK: Tensor | None = None) -> tuple[list[float], list[list[int]]]:
    """The derivatives that are not zero, and where they are."""
    if weights_BK is None:
        return [], []
    if among_BK is not None:
        weights_BK = weights_BK * among_BK
    places: list[list[int]] = weights_BK.nonzero().tolist()
    return [float(weights_BK[place[0], place[1]]) for place in places], places


def _log_likelihood(found: Candidates) -> Tensor:
    """log p(y|x) over the candidates [B], or, over lists that were drawn, its estimate."""
    if found.lists is not None:
        drawn_Bm = found.lists.likelihood.detach()
        return drawn_Bm.logsumexp(1) - torch.tensor(float(drawn_Bm.shape[1])).log()
    return (log_softmax(found.prior, found.present) + found.likelihood).detach().logsumexp(1)
