"""What finds and scores a question's candidates, and is trained: the question encoders of a dense index.

A `Finder` is all that a learner knows of a retriever in training: `selector.py` has another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.retrieval.dense import DenseRetriever
from regrad.retrieval.encoder import Encoder
from regrad.training.checkpoint import Product
from regrad.training.retriever.artefact import Trained, TrainedEncoder
from regrad.training.retriever.candidates import PassageVectors, Union, unite
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.passage_side import PassageSide, Refresher
from regrad.training.workers import Workers


@dataclass(frozen=True)
class Found:
    """Candidates and their scores by both retrievers [B, U], divided by the temperature; differentiable."""

    union: Union
    prior: Tensor
    posterior: Tensor


class Finder(Protocol):
    """A retriever in training, of which a passage is known by its row."""

    @property
    def digest(self) -> str:
        """What it was before it was trained."""

    def parts(self) -> Mapping[str, tuple[nn.Module, float]]:
        """What is trained, by name, and at which rate."""

    def before(self, step: int, questions: Sequence[Question]) -> bool:
        """What is due before a step, and changes nothing that is trained; gives whether other vectors are searched from
        now on. Raises `Interrupted`."""

    def find(self, questions: Sequence[Question], kept_B: Tensor) -> Found:
        """The candidates; `kept_B` are rows that are among them in any case (`NO_STATE`: none)."""

    def score(self, questions: Sequence[Question], union: Union) -> Tensor:
        """The prior's scores of these candidates [B, U]."""

    def passages(self, rows: Sequence[int]) -> dict[int, Passage]:
        """The passages at these rows."""

    def numbers(self, step: int) -> Mapping[str, float]:
        """What to report."""

    def tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint needs beside the parts."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave, once the parts have theirs."""

    def product(self, notes: Mapping[str, Any], generator: Product | None) -> Trained:
        """What was trained as it is now."""


class DenseFinder:
    """The prior's encoder is the index's own for questions; the posterior's, which reads question and answer, begins as
    a copy of it. Passages and their vectors stay as they are without a `refresher`; with one their encoder is trained.
    """

    def __init__(
        self,
        config: RetrieverTrainConfig,
        retriever: DenseRetriever,
        needs_posterior: bool,
        device: torch.device,
        workers: Workers,
        refresher: Refresher | None,
    ) -> None:
        self._config, self._retriever = config, retriever
        self._vectors = PassageVectors(retriever.vectors, device, config.index)
        self._prior = retriever.encoder
        self._posterior = retriever.encoder.copy() if needs_posterior else None
        self.digest = f"{self._prior.digest()}|{retriever.passages_digest}"
        self.side: PassageSide | None = None
        if config.passages is not None and refresher is not None:
            encoder = retriever.passages_encoder(str(device))
            self.side = PassageSide(encoder, self._vectors, config.passages, refresher, workers)

    def parts(self) -> Mapping[str, tuple[nn.Module, float]]:
        """See `Finder`."""
        lr = self._config.optimizer.lr
        parts = {"prior": (self._prior.module, lr)}
        if self._posterior is not None:
            parts["posterior"] = (self._posterior.module, lr)
        if self.side is not None and self._config.passages is not None:
            parts["passages"] = (self.side.module, self._config.passages.lr or lr)
        return parts

    def before(self, step: int, questions: Sequence[Question]) -> bool:
        """See `Finder`: vectors are begun, and taken in."""
        if self.side is None:
            return False
        queries = [question.query for question in questions]
        return self.side.before(step, lambda: self._question_vectors(self._prior, queries), self._config.k)

    def find(self, questions: Sequence[Question], kept_B: Tensor) -> Found:
        """See `Finder`."""
        k, separator = self._config.k, self._config.separator
        prior_BD = self._question_vectors(self._prior, [question.query for question in questions])
        posterior_BD = prior_BD
        if self._posterior is not None:
            answered = [question.query_with(separator + question.answers[0]) for question in questions]
            posterior_BD = self._question_vectors(self._posterior, answered)
        searched = self.side.vectors if self.side is not None else self._vectors
        with torch.no_grad():
            nearest = [searched.nearest(queries_BD, k) for queries_BD in (prior_BD, posterior_BD)]
        union = unite(nearest[0], nearest[1], kept_B.to(searched.device))
        vectors_BUD = self._vectors_of(union)
        return Found(union, self._scores(prior_BD, vectors_BUD), self._scores(posterior_BD, vectors_BUD))

    def score(self, questions: Sequence[Question], union: Union) -> Tensor:
        """See `Finder`."""
        queries_BD = self._question_vectors(self._prior, [question.query for question in questions])
        return self._scores(queries_BD, self._vectors_of(union))

    def _question_vectors(self, encoder: Encoder, queries: Sequence[str]) -> Tensor:
        return encoder.question_vectors(queries, self._config.batch_tokens)

    def _scores(self, queries_BD: Tensor, vectors_BUD: Tensor) -> Tensor:
        return torch.einsum("bd,bud->bu", queries_BD, vectors_BUD) / self._config.temperature

    def _vectors_of(self, union: Union) -> Tensor:
        """The candidates' vectors [B, U, D]: those of the index, or of the passages' encoder as it is now."""
        if self.side is None:
            return self._vectors.of(union.rows)
        # Where no passage is, the first one stands: nothing is read of that place.
        rows_BU = union.rows.masked_fill(~union.present, int(union.rows[union.present][0]))
        rows_N, places_BU = torch.unique(rows_BU, return_inverse=True)
        passages = list(self.passages(rows_N.tolist()).values())
        return self.side.of(passages, self._config.batch_tokens)[places_BU]

    def passages(self, rows: Sequence[int]) -> dict[int, Passage]:
        """See `Finder`."""
        ids = self._retriever.ids_of_rows(rows)
        return dict(zip(ids, self._retriever.passages(list(ids.values())), strict=True))

    def numbers(self, step: int) -> Mapping[str, float]:
        """See `Finder`."""
        return self.side.numbers(step) if self.side is not None else {}

    def tensors(self) -> Mapping[str, Tensor]:
        """See `Finder`."""
        return self.side.tensors() if self.side is not None else {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Finder`."""
        if self.side is not None:
            self.side.load(tensors)

    def product(self, notes: Mapping[str, Any], generator: Product | None) -> TrainedEncoder:
        """See `Finder`."""
        digest = self._retriever.passages_digest
        if self.side is None:
            return TrainedEncoder(self._prior, digest, notes, generator)
        refreshes = [asdict(refresh) for refresh in self.side.refreshes]
        return TrainedEncoder(self._prior, digest, {**notes, "refreshes": refreshes}, generator, self.side.encoder)
