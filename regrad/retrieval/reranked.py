"""An index whose best passages are read again, with the question, by a cross-encoder, and put in its order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.base import CARD, IndexCard, Retriever, check_index, may_change, open_retriever, write_card
from regrad.retrieval.config import RerankConfig, RetrieverConfig
from regrad.retrieval.fused import with_sources
from regrad.retrieval.hits import SourcedHit
from regrad.storage import Storage, directory_writer

if TYPE_CHECKING:
    from torch import Tensor, nn

_FILE = "reranked.json"


def rerank_index(settings: RerankConfig, uri: str) -> int:
    """Write an index at `uri` that names another one and a cross-encoder; returns how many passages there are.

    Raises `RetrievalError` if one of the two cannot be opened.
    """
    inner = check_index(settings.index)
    CrossEncoder(settings)
    with directory_writer(uri, CARD) as folder:
        (folder / _FILE).write_text(settings.model_dump_json(indent=1) + "\n")
        write_card(folder, "reranked", inner.passages, joins=inner.joins or (inner.kind,))
    return inner.passages


class CrossEncoder:
    """A model that reads a question and a passage together and gives one score.

    Raises `RetrievalError` if there is none at the settings' path: another model would get a new head with random
    weights, and an order without a meaning.
    """

    def __init__(self, settings: RerankConfig, device: str | None = None) -> None:
        try:
            from sentence_transformers import CrossEncoder as Model
        except ModuleNotFoundError as error:
            raise RetrievalError(
                "reranking needs sentence-transformers: pip install 'regrad[dense]'", code="no_encoders"
            ) from error
        # Here, as the kind of an index is asked without loading a model.
        from torch.nn import Identity
        from transformers import AutoConfig

        from regrad.models.local_files import resolve_path

        path = resolve_path(settings.model)
        try:
            _check_is_cross_encoder(AutoConfig.from_pretrained(path, trust_remote_code=False), settings.model)
            self._model: Any = Model(
                path,
                device=device,
                trust_remote_code=False,
                max_length=settings.max_tokens,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise RetrievalError(
                f"no cross-encoder could be loaded from {settings.model}: {reason}",
                code="no_cross_encoder",
                path=settings.model,
            ) from error
        self._model.eval()
        self._batch = settings.batch_size
        # The model's own (None), often a sigmoid, squeezes the scores whose softmax was trained.
        self._activation = Identity() if settings.temperature is not None else None

    @property
    def module(self) -> nn.Module:
        """The network, for what trains it."""
        return self._model  # type: ignore[no-any-return]

    def logits(self, pairs: Sequence[tuple[str, Passage]], batch_tokens: int | None = None) -> Tensor:
        """The scores of questions with passages [N], differentiable: those that `scores` orders by.

        At most `batch_tokens` padded tokens are in a pass (None: all), with the gradients of one (`network_output`).
        """
        from regrad.retrieval.differentiable import network_output  # loads torch, not needed for an index's kind

        texts = [(question, _text(passage)) for question, passage in pairs]
        return network_output(self._model, texts, "scores", batch_tokens).float().reshape(-1)

    def save(self, folder: Path) -> None:
        """Write the model as it is now, as the settings' `model` names it."""
        self._model.save_pretrained(str(folder), safe_serialization=True)

    def digest(self) -> str:
        """SHA-256 (hex) of the weights."""
        digest = hashlib.sha256()
        for name, weights in sorted(self._model.state_dict().items()):
            digest.update(f"{name}|{tuple(weights.shape)}|".encode())
            digest.update(weights.detach().float().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def scores(self, question: str, passages: Sequence[Passage]) -> list[float]:
        """One score a passage, higher is better; raises `RetrievalError` for one that is not finite."""
        pairs = [(question, _text(passage)) for passage in passages]
        predicted = self._model.predict(
            pairs, batch_size=self._batch, show_progress_bar=False, activation_fn=self._activation
        )
        found = [float(score) for score in predicted]
        for passage, score in zip(passages, found, strict=True):
            if not math.isfinite(score):
                raise RetrievalError(
                    f"the cross-encoder gives passage {passage.id!r:.80} a score that is not finite",
                    code="not_finite",
                    passage_id=passage.id,
                )
        return found


def _text(passage: Passage) -> str:
    return f"{passage.title}\n{passage.text}".strip()


def _check_is_cross_encoder(config: Any, model: str) -> None:
    # The file says what was saved; the loaded class has the right name, and perhaps a new head of random weights.
    named = config.architectures or []
    if config.num_labels != 1 or not any(name.endswith("ForSequenceClassification") for name in named):
        raise RetrievalError(
            f"{model} is not a cross-encoder with one score ({', '.join(named) or 'no architecture named'}, "
            f"{config.num_labels} labels); name a model for ranking, such as ms-marco-MiniLM",
            code="no_cross_encoder",
            path=model,
        )


def _read(data: bytes) -> RerankConfig:
    return RerankConfig.model_validate_json(data)


class RerankedRetriever(Retriever):
    """Searches the index that it names, and reorders its first `depth` passages. Safe to use from many threads.

    Over a collection it follows that one's versions (`newest`).
    """

    HAS_STORE = False

    @classmethod
    def named_indexes(cls, uri: str, card: IndexCard) -> tuple[str, ...]:
        """See `Retriever`."""
        return (_read(Storage(uri).read(_FILE)).index,)

    @classmethod
    def named_models(cls, uri: str, card: IndexCard) -> tuple[str, ...]:
        """See `Retriever`."""
        return (_read(Storage(uri).read(_FILE)).model,)

    def __init__(self, folder: Path, card: IndexCard, settings: RetrieverConfig) -> None:
        self._settings = _read((folder / _FILE).read_bytes())
        inner = check_index(self._settings.index)
        if inner.passages != card.passages and not may_change(self._settings.index, inner):
            raise RetrievalError(
                f"the index at {self._settings.index} has {inner.passages:,} passages, and had {card.passages:,} when "
                "this was made; make the reranked index again",
                code="other_corpus",
                found=inner.passages,
                expected=card.passages,
            )
        self._encoder = CrossEncoder(self._settings)
        self._search(card, open_retriever(self._settings.index, settings))

    def _search(self, card: IndexCard, inner: Retriever) -> None:
        self.card = card.model_copy(update={"passages": inner.card.passages})
        self._inner = inner

    @property
    def bank(self) -> tuple[str, int] | None:
        """See `Retriever`."""
        return self._inner.bank

    @property
    def temperature(self) -> float | None:
        """See `Retriever`."""
        return self._settings.temperature

    def newest(self) -> Retriever:
        """See `Retriever`. Both versions have one cross-encoder."""
        inner = self._inner.newest()
        if inner is self._inner:
            return self
        newer = copy(self)
        newer._search(self.card, inner)
        return newer

    def retire(self) -> None:
        """See `Retriever`."""
        self._inner.retire()

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """See `Retriever`. Passages with equal scores stay in the order in which they were found."""
        return [[hit[:2] for hit in hits] for hits in self.sourced(questions, k)]

    def sourced(self, questions: Sequence[str], k: int) -> list[list[SourcedHit]]:
        """See `Retriever`: what the index that it names said before."""
        ranked = []
        for question, hits in zip(questions, self._inner.search(questions, max(k, self._settings.depth)), strict=True):
            passages = [hit.passage for hit in hits]
            scores = self._encoder.scores(question, passages) if passages else []
            best = sorted(zip(passages, scores, strict=True), key=lambda pair: -pair[1])
            said = with_sources(self._inner.card.kind, [(hit.passage.id, hit.score, hit.sources) for hit in hits])
            ranked.append([(passage.id, score, said[passage.id]) for passage, score in best[:k]])
        return ranked

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """See `Retriever`."""
        return self._inner.passages(ids)

    def known(self, ids: Sequence[str]) -> set[str]:
        """See `Retriever`."""
        return self._inner.known(ids)

    def close(self) -> None:
        """See `Retriever`."""
        self._inner.close()
