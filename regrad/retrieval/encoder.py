"""Texts to vectors: any encoder of sentence-transformers, its prefixes, and a digest that binds an index to it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.config import EncoderConfig
from regrad.retrieval.differentiable import network_output
from regrad.retrieval.embedding import Vectors
from regrad.retrieval.sentence_models import load_sentence_model


class Encoder:
    """A text encoder. Raises `RetrievalError` if it cannot be loaded.

    Questions and passages are told apart where the model does: by the prefixes of the settings, else by the prompts
    that the model brings for `query` and `document` (E5, BGE), else not at all.
    """

    def __init__(self, config: EncoderConfig, device: str | None = None) -> None:
        self.config = config
        self._model = self._load(config.path, device)
        self._of_questions = self._model
        if config.question_path is not None:
            self._of_questions = self._load(config.question_path, device)
            expected, found = self.dimensions, int(self._of_questions.get_embedding_dimension())
            if found != expected:
                raise RetrievalError(
                    f"the encoder of passages at {config.path} gives {expected} dimensions, and that of questions at "
                    f"{config.question_path} {found}: they are no pair",
                    code="other_dimensions",
                    expected=expected,
                    found=found,
                )

    def _load(self, path: str, device: str | None) -> Any:
        model = load_sentence_model(path, device)
        if self.config.max_tokens is not None:
            model.max_seq_length = self.config.max_tokens
        return model

    @property
    def dimensions(self) -> int:
        """D of the vectors."""
        return int(self._model.get_embedding_dimension())

    def encode_questions(self, questions: Sequence[str]) -> Vectors:
        """One vector a question; of length 1 if the settings normalise."""
        if self.config.question_prefix is None:
            return self._encode(self._of_questions.encode_query, questions)
        return self._encode(self._of_questions.encode, [self.config.question_prefix + text for text in questions])

    def encode_passages(self, passages: Sequence[Passage]) -> Vectors:
        """One vector a passage, of its title and text."""
        texts = self._texts(passages)
        if self.config.passage_prefix is None:
            return self._encode(self._model.encode_document, texts)
        return self._encode(self._model.encode, [self.config.passage_prefix + text for text in texts])

    @staticmethod
    def _texts(passages: Sequence[Passage]) -> list[str]:
        return [f"{passage.title}\n{passage.text}".strip() for passage in passages]

    @property
    def module(self) -> nn.Module:
        """The questions' network, for what trains it."""
        return self._of_questions  # type: ignore[no-any-return]

    @property
    def passages_module(self) -> nn.Module:
        """The passages' network, for what trains it; that of questions, too, if there is one for both."""
        return self._model  # type: ignore[no-any-return]

    def question_vectors(self, questions: Sequence[str], batch_tokens: int | None = None) -> Tensor:
        """As `encode_questions`, and differentiable with respect to the weights: [N, D] float32.

        At most `batch_tokens` padded tokens are in a pass (None: all), with the gradients of one (`network_output`).
        """
        prefix = self.config.question_prefix
        return self._vectors(self._of_questions, questions, prefix, ("query",), batch_tokens)

    def passage_vectors(self, passages: Sequence[Passage], batch_tokens: int | None = None) -> Tensor:
        """As `encode_passages`, and differentiable like `question_vectors`: [N, D] float32."""
        names = ("document", "passage", "corpus")
        return self._vectors(self._model, self._texts(passages), self.config.passage_prefix, names, batch_tokens)

    def _vectors(
        self, model: Any, texts: Sequence[str], prefix: str | None, prompts: Sequence[str], batch_tokens: int | None
    ) -> Tensor:
        if prefix is None:
            prefix = next((model.prompts[name] for name in prompts if model.prompts.get(name)), "")
        prefixed = [prefix + text for text in texts]
        vectors_ND = network_output(model, prefixed, "sentence_embedding", batch_tokens).float()
        return F.normalize(vectors_ND, dim=1) if self.config.normalise else vectors_ND

    def copy(self) -> Encoder:
        """The same models and settings, with weights of its own for questions."""
        other = copy.copy(self)
        other._of_questions = copy.deepcopy(self._of_questions)
        if self._of_questions is self._model:
            other._model = other._of_questions
        return other

    def save(self, folder: Path) -> None:
        """Write the questions' model as it is now, in sentence-transformers' form.

        `Encoder` reads it with the same settings, but for `question_path`.
        """
        self._of_questions.save(str(folder), create_model_card=False, safe_serialization=True)

    def save_passages(self, folder: Path) -> None:
        """As `save`, the passages' model."""
        self._model.save(str(folder), create_model_card=False, safe_serialization=True)

    def digest(self) -> str:
        """SHA-256 (hex) of the weights and of all settings that change a vector: an index belongs to one of these."""
        digest = self._digest_of(self._model)
        if self._of_questions is not self._model:
            digest = hashlib.sha256(f"{digest}|{self._digest_of(self._of_questions)}".encode()).hexdigest()
        return digest

    def _digest_of(self, model: Any) -> str:
        digest = hashlib.sha256(repr(sorted(self._settings(model).items())).encode())
        for name, weights in sorted(model.state_dict().items()):
            digest.update(f"{name}|{tuple(weights.shape)}|".encode())
            digest.update(weights.detach().float().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def _settings(self, model: Any) -> dict[str, Any]:
        modules = [(type(module).__name__, module.get_config_dict()) for module in model]
        own = {
            "prompts": repr(sorted(model.prompts.items())),
            "max_tokens": model.max_seq_length,
            "modules": repr(modules),
        }
        return self.config.model_dump(exclude={"path", "question_path", "batch_size"}) | own

    def _encode(self, encode: Any, texts: Sequence[str]) -> Vectors:
        with torch.inference_mode():
            found = encode(
                list(texts),
                batch_size=self.config.batch_size,
                normalize_embeddings=self.config.normalise,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        vectors: Vectors = np.ascontiguousarray(found, dtype=np.float32)
        return vectors
