"""A selector in training: a cross-encoder that scores what an index of any kind finds, and so orders it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import TrainingError
from regrad.retrieval.base import Retriever
from regrad.retrieval.config import RerankConfig
from regrad.retrieval.reranked import CrossEncoder
from regrad.training.checkpoint import Product
from regrad.training.retriever.artefact import TrainedSelector
from regrad.training.retriever.candidates import Union
from regrad.training.retriever.chains import NO_STATE
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.finder import Found


def selector_settings(config: RetrieverTrainConfig, index: str, model: str) -> RerankConfig:
    """Those of an index that this run's selector reranks: the model at `model` over `index`, as deep as was trained."""
    assert config.selector is not None
    return RerankConfig(
        index=index,
        model=model,
        depth=config.k,
        max_tokens=config.selector.max_tokens,
        temperature=config.temperature,
    )


def nothing_found(index: str, question: Question) -> TrainingError:
    """The error for a question that has no candidates."""
    return TrainingError(
        f"the index at {index} finds no passage for the question {question.question!r:.80}: there is nothing to choose "
        "from; leave the question out, or take an index that finds something",
        code="nothing_found",
        question=question.question,
    )


class SelectorFinder:
    """Candidates are the index's best k, always the same; the scores, by which they are ordered, are trained.

    Raises `RetrievalError` if there is no cross-encoder at the settings' place.
    """

    def __init__(self, config: RetrieverTrainConfig, retriever: Retriever, device: torch.device) -> None:
        assert config.selector is not None
        self._config, self._retriever, self._device = config, retriever, device
        self._encoder = CrossEncoder(selector_settings(config, config.index, config.selector.model), str(device))
        self.digest = self._encoder.digest()
        # A passage is known by its place in the order in which passages were first found.
        self._passages: list[Passage] = []
        self._rows: dict[str, int] = {}
        self._found: dict[str, list[int]] = {}

    def parts(self) -> Mapping[str, tuple[nn.Module, float]]:
        """See `Finder`."""
        return {"selector": (self._encoder.module, self._config.optimizer.lr)}

    def before(self, step: int, questions: Sequence[Question]) -> bool:
        """See `Finder`: nothing."""
        return False

    def find(self, questions: Sequence[Question], kept_B: Tensor) -> Found:
        """See `Finder`. Raises `TrainingError` for a question of which the index finds nothing."""
        self._search([question for question in questions if question.query not in self._found])
        rows = [self._found[question.query] for question in questions]
        most = max(map(len, rows))
        rows_BU = torch.tensor([one + [NO_STATE] * (most - len(one)) for one in rows], device=self._device)
        present_BU = rows_BU != NO_STATE
        none_B = torch.full((len(rows),), NO_STATE, device=self._device)
        union = Union(rows_BU.clamp_min(0), present_BU, present_BU, present_BU, none_B)
        scores_BU = self.score(questions, union)
        return Found(union, scores_BU, scores_BU)

    def _search(self, questions: Sequence[Question]) -> None:
        hits = self._retriever.search([question.query for question in questions], self._config.k) if questions else []
        for question, found in zip(questions, hits, strict=True):
            if not found:
                raise nothing_found(self._config.index, question)
            for hit in found:
                if hit.passage.id not in self._rows:
                    self._rows[hit.passage.id] = len(self._passages)
                    self._passages.append(hit.passage)
            self._found[question.query] = [self._rows[hit.passage.id] for hit in found]

    def score(self, questions: Sequence[Question], union: Union) -> Tensor:
        """See `Finder`."""
        places = union.present.nonzero()
        pairs = [(questions[b].query, self._passages[int(union.rows[b, u])]) for b, u in places.tolist()]
        logits_N = self._encoder.logits(pairs, self._config.batch_tokens) / self._config.temperature
        return logits_N.new_zeros(union.rows.shape).index_put((places[:, 0], places[:, 1]), logits_N)

    def passages(self, rows: Sequence[int]) -> dict[int, Passage]:
        """See `Finder`."""
        return {row: self._passages[row] for row in rows}

    def numbers(self, step: int) -> Mapping[str, float]:
        """See `Finder`."""
        return {}

    def tensors(self) -> Mapping[str, Tensor]:
        """See `Finder`: what was found is found again."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Finder`."""

    def product(self, notes: Mapping[str, Any], generator: Product | None) -> TrainedSelector:
        """See `Finder`."""
        return TrainedSelector(self._encoder, notes, generator)
