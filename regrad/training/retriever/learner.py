"""What one step of training a retriever computes and updates: its question encoders, and the generator if asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regrad.data.questions import Question
from regrad.errors import RetrievalError, TrainingError
from regrad.retrieval.base import Retriever, open_retriever
from regrad.retrieval.dense import DenseRetriever
from regrad.retrieval.encoder import Encoder
from regrad.storage import directory_writer
from regrad.training.checkpoint import Product, TrainState
from regrad.training.loop import StepResult
from regrad.training.module_steps import AdamWSettings, ModuleSteps, make_steps
from regrad.training.retriever.candidates import PassageVectors, Union, unite
from regrad.training.retriever.chains import NO_STATE
from regrad.training.retriever.config import JsaConfig, RetrieverTrainConfig
from regrad.training.retriever.generator import TrainedGenerator
from regrad.training.retriever.likelihood import Asked, Likelihood
from regrad.training.retriever.objectives import Candidates, log_softmax, make_objective
from regrad.training.retriever.passage_side import PassageSide, Refresher
from regrad.training.workers import Workers

QUESTION_ENCODER = "question_encoder"
ENCODER = "encoder"
GENERATOR = "generator"
PASSAGES = "passages"
CARD = "question_encoder.json"


@dataclass(frozen=True)
class NumberedQuestion:
    """A training question and its number among all of them, by which its chain and its likelihoods are kept."""

    number: int
    question: Question


@dataclass(frozen=True)
class TrainedEncoder:
    """A question encoder as it is now, the digest of the passages' encoder that it belongs to, and notes on the run.

    `generator` and `passages`, the passages' encoder, are what was trained with it.
    """

    encoder: Encoder
    passages_digest: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    generator: Product | None = None
    passages: Encoder | None = None

    def save(self, uri: Path, /) -> None:
        """Write the directory, whole or not at all."""
        with directory_writer(uri, CARD) as folder:
            self.encoder.save(folder / ENCODER)
            if self.generator is not None:
                self.generator.save(folder / GENERATOR)
            if self.passages is not None:
                self.passages.save_passages(folder / PASSAGES)
            card = {"passages_digest": self.passages_digest, "notes": dict(self.notes)}
            (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")


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
    if retriever.card.passages < k:
        raise TrainingError(
            f"the index at {uri} has {retriever.card.passages} passages and k is {k}: set k to at most that, or index "
            "a larger corpus",
            code="fewer_passages_than_k",
            passages=retriever.card.passages,
            k=k,
        )
    retriever.encoder.module.to(device)
    return retriever


class RetrieverLearner:
    """One worker's side of training a retriever: a `Learner` of questions.

    The prior's encoder is the index's own for questions; the posterior's, which reads question and answer, begins as a
    copy of it. Passages and their vectors stay as they are without a `refresher`; with one the passages' encoder is
    trained, too. A likelihood is computed once for each question and passage if the generator stays as it is; one that
    is a `TrainedGenerator` takes part in every step.
    """

    kind, product_name = "retriever", QUESTION_ENCODER
    remedy = "lower optimizer.lr or raise temperature"

    def __init__(
        self,
        config: RetrieverTrainConfig,
        retriever: DenseRetriever,
        likelihood: Likelihood | TrainedGenerator,
        questions: int,
        device: torch.device,
        base: str = "",
        notes: Mapping[str, Any] | None = None,
        workers: Workers = Workers(),
        refresher: Refresher | None = None,
    ) -> None:
        workers.check(config.optimizer.batch_size)
        self._config, self._retriever, self._likelihood = config, retriever, likelihood
        self._objective = make_objective(config.objective)
        self._vectors = PassageVectors(retriever.vectors, device)
        self._prior = retriever.encoder
        self._posterior = retriever.encoder.copy() if self._objective.needs_posterior else None
        self._passages: PassageSide | None = None
        if config.passages is not None and refresher is not None:
            encoder = retriever.passages_encoder(str(device))
            self._passages = PassageSide(encoder, self._vectors, config.passages, refresher, workers)
        self._generator: TrainedGenerator | None = likelihood if hasattr(likelihood, "gradient") else None
        self._steps = self._made_steps(workers)
        self.device, self._workers, self._notes = device, workers, notes or {}
        self.base = hashlib.sha256(f"{base}|{self._prior.digest()}|{retriever.passages_digest}".encode()).hexdigest()
        keeps = isinstance(config.objective, JsaConfig) and config.objective.keep_chain
        self._chains = torch.full((questions if keeps else 0,), NO_STATE)
        self._known: dict[tuple[int, int], float] = {}
        self._numbers: dict[str, float] = {}
        self._step = 0

    def _made_steps(self, workers: Workers) -> ModuleSteps:
        config, optimizer = self._config, self._config.optimizer
        parts = {"prior": self._prior.module}
        if self._posterior is not None:
            parts["posterior"] = self._posterior.module
        groups = [([p for part in parts.values() for p in part.parameters()], optimizer.lr)]
        if self._passages is not None and config.passages is not None:
            parts["passages"] = self._passages.module
            groups.append((list(self._passages.module.parameters()), config.passages.lr or optimizer.lr))
        if self._generator is not None and config.generator is not None:
            parts["generator"] = self._generator.module
            groups.append((list(self._generator.module.parameters()), config.generator.lr))
        settings = AdamWSettings(optimizer.betas, optimizer.weight_decay, optimizer.clip, optimizer.zero_stage)
        return make_steps(nn.ModuleDict(parts), groups, settings, workers)

    def prepare(self, batch: Sequence[NumberedQuestion], state: TrainState) -> str:
        """See `Learner`."""
        self._step = state.step
        return ""

    def step(self, batch: Sequence[NumberedQuestion], factor: float) -> StepResult:
        """See `Learner`."""
        # 1. Vectors that are due, before anything is changed; then what the objective looks at, and what it says of it.
        if self._passages is not None:
            with torch.no_grad():
                queries_BD = self._prior.question_vectors([item.question.question for item in batch])
            self._passages.before(self._step, queries_BD, self._config.k)
        union, found = self.candidates(batch)
        # A step's draws follow from seed, step and worker alone, so a resumed run repeats them.
        key = hashlib.sha256(f"{self._config.seed}/{self._step}/{self._workers.rank}".encode())
        draws = torch.Generator().manual_seed(int.from_bytes(key.digest()[:8], "big") >> 1)
        self._step += 1
        counts = {"questions": len(batch), "candidates": int(union.present.sum())}
        finite = torch.isfinite(found.prior).all() & torch.isfinite(found.posterior).all()
        if not self._steps.everywhere(finite):
            return StepResult(None, counts)
        objected = self._objective(found, draws)
        loss = objected.loss.mean()

        # 2. Gradients of the encoders, and of the generator by what each likelihood counts for, and a step by both.
        self._steps.forget_gradients()
        loss.backward()  # type: ignore[no-untyped-call]
        if self._generator is not None:
            self._add_generators_gradient(self._generator, batch, union, found.likelihood.grad)
        if not self._steps.step(factor):
            return StepResult(None, counts)
        if self._generator is not None:
            self._generator.moved()

        # 3. What is kept of it.
        if len(self._chains) and objected.states is not None:
            rows_B = union.rows.gather(1, objected.states[:, None])[:, 0]
            self._chains[[item.number for item in batch]] = rows_B.cpu()
        marginal_B = (log_softmax(found.prior, found.present) + found.likelihood).detach().logsumexp(1)
        sizes = {"candidates": counts["candidates"] / len(batch)}
        self._numbers = {"answer_log_likelihood": float(marginal_B.mean()), **sizes, **objected.numbers}
        if self._passages is not None:
            self._numbers |= self._passages.numbers(self._step)
        return StepResult(float(self._workers.mean(loss.detach())), counts)

    def candidates(self, batch: Sequence[NumberedQuestion]) -> tuple[Union, Candidates]:
        """The passages that each question may rest on, and all that an objective wants to know of them."""
        k, separator = self._config.k, self._config.separator
        texts = [item.question.question for item in batch]
        prior_BD = self._prior.question_vectors(texts)
        posterior_BD = prior_BD
        if self._posterior is not None:
            answered = [text + separator + item.question.answers[0] for text, item in zip(texts, batch, strict=True)]
            posterior_BD = self._posterior.question_vectors(answered)
        kept_B = self._chains[[item.number for item in batch]] if len(self._chains) else torch.full((len(batch),), -1)
        with torch.no_grad():
            searched = self._passages.vectors if self._passages is not None else self._vectors
            nearest = [searched.nearest(queries_BD, k) for queries_BD in (prior_BD, posterior_BD)]
        union = unite(nearest[0], nearest[1], kept_B.to(self.device))
        vectors_BUD = self._vectors_of(union)
        prior_BU, posterior_BU = (
            torch.einsum("bd,bud->bu", queries_BD, vectors_BUD) / self._config.temperature
            for queries_BD in (prior_BD, posterior_BD)
        )
        likelihood_BU = self._likelihoods(batch, union).to(self.device).requires_grad_(self._generator is not None)
        masks = (union.present, union.by_prior, union.by_posterior)
        return union, Candidates(prior_BU, posterior_BU, likelihood_BU, *masks, union.start)

    def _vectors_of(self, union: Union) -> Tensor:
        """The candidates' vectors [B, U, D]: those of the index, or of the passages' encoder as it is now."""
        if self._passages is None:
            return self._vectors.of(union.rows)
        # Where no passage is, the first one stands: nothing is read of that place.
        first = int(union.rows[union.present][0])
        rows_BU = union.rows.masked_fill(~union.present, first)
        rows_N, places_BU = rows_BU.unique(return_inverse=True)
        ids = self._retriever.ids_of_rows(rows_N.tolist())
        return self._passages.of(self._retriever.passages(list(ids.values())))[places_BU]

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
        return likelihood_BU

    def _asked(self, wanted: Sequence[tuple[Question, int]]) -> list[Asked]:
        """Questions with the passages at these rows."""
        ids = self._retriever.ids_of_rows(sorted({row for _, row in wanted}))
        passages = dict(zip(ids, self._retriever.passages(list(ids.values())), strict=True))
        return [(question, (passages[row],)) for question, row in wanted]

    def _add_generators_gradient(
        self, generator: TrainedGenerator, batch: Sequence[NumberedQuestion], union: Union, weights_BU: Tensor | None
    ) -> None:
        """The gradient of the objective by the generator's parameters, over the pairs that it depends on."""
        # Where the objective does not look, the derivative is zero: nothing is read again for it.
        counting = [] if weights_BU is None else (weights_BU * union.present).nonzero().tolist()
        wanted = [(batch[b].question, int(union.rows[b, u])) for b, u in counting]
        weights = [float(weights_BU[b, u]) for b, u in counting] if weights_BU is not None else []
        (parameter,) = generator.module.parameters()
        parameter.grad = generator.gradient(self._asked(wanted), weights).to(parameter)

    def numbers(self) -> dict[str, float]:
        """See `Learner`."""
        return self._numbers

    def tensors(self) -> dict[str, Tensor]:
        """See `Learner`; the states of kept chains, too."""
        beside = self._passages.tensors() if self._passages is not None else {}
        return {**self._steps.tensors(), **beside, "chains": self._chains.clone()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Learner`."""
        self._steps.load(tensors)
        self._chains = tensors["chains"].clone()
        if self._generator is not None:
            self._generator.moved()
        if self._passages is not None:
            self._passages.load(tensors)

    def product(self, state: TrainState) -> TrainedEncoder:
        """What was trained as it is now."""
        notes = {**self._notes, "steps": state.step, "skipped_steps": len(state.skipped), "losses": state.some_losses()}
        notes |= {"numbers": self._numbers}
        generator = self._generator.product(notes) if self._generator is not None else None
        if self._passages is None:
            return TrainedEncoder(self._prior, self._retriever.passages_digest, notes, generator)
        notes["refreshes"] = [asdict(refresh) for refresh in self._passages.refreshes]
        return TrainedEncoder(self._prior, self._retriever.passages_digest, notes, generator, self._passages.encoder)
