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
from numpy.typing import NDArray
from torch import Tensor, nn

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.models.loading import resolve_path
from regrad.retrieval.config import EncoderConfig

Vectors = NDArray[np.float32]
"""[N, D], a row a text."""


class Encoder:
    """A text encoder. Raises `RetrievalError` if it cannot be loaded.

    Questions and passages are told apart where the model does: by the prefixes of the settings, else by the prompts
    that the model brings for `query` and `document` (E5, BGE), else not at all.
    """

    def __init__(self, config: EncoderConfig, device: str | None = None) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise RetrievalError(
                "dense retrieval needs sentence-transformers: pip install 'regrad[dense]'", code="no_encoders"
            ) from error
        self.config = config
        path = resolve_path(config.path)
        try:
            # No code that comes with a model is run, and no pickled weights are read.
            model = SentenceTransformer(
                path, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise RetrievalError(
                f"no encoder could be loaded from {config.path}: {reason}", code="no_encoder", path=config.path
            ) from error
        if config.max_tokens is not None:
            model.max_seq_length = config.max_tokens
        self._model: Any = model.eval()

    @property
    def dimensions(self) -> int:
        """D of the vectors."""
        return int(self._model.get_embedding_dimension())

    def encode_questions(self, questions: Sequence[str]) -> Vectors:
        """One vector a question; of length 1 if the settings normalise."""
        if self.config.question_prefix is None:
            return self._encode(self._model.encode_query, questions)
        return self._encode(self._model.encode, [self.config.question_prefix + text for text in questions])

    def encode_passages(self, passages: Sequence[Passage]) -> Vectors:
        """One vector a passage, of its title and text."""
        texts = [f"{passage.title}\n{passage.text}".strip() for passage in passages]
        if self.config.passage_prefix is None:
            return self._encode(self._model.encode_document, texts)
        return self._encode(self._model.encode, [self.config.passage_prefix + text for text in texts])

    @property
    def module(self) -> nn.Module:
        """The network, for what trains it."""
        return self._model  # type: ignore[no-any-return]

    def question_vectors(self, questions: Sequence[str]) -> Tensor:
        """As `encode_questions`, in one batch and differentiable with respect to the weights: [N, D] float32."""
        prefix = self.config.question_prefix
        if prefix is None:
            prefix = self._model.prompts.get("query") or ""
        features = self._model.preprocess([prefix + text for text in questions])
        features = {name: self._to_device(value) for name, value in features.items()}
        vectors_ND: Tensor = self._model(features)["sentence_embedding"].float()
        return F.normalize(vectors_ND, dim=1) if self.config.normalise else vectors_ND

    def copy(self) -> Encoder:
        """The same model and settings, with weights of its own."""
        other = copy.copy(self)
        other._model = copy.deepcopy(self._model)
        return other

    def save(self, folder: Path) -> None:
        """Write the model as it is now, in sentence-transformers' form; `Encoder` reads it with the same settings."""
        self._model.save(str(folder), create_model_card=False, safe_serialization=True)

    def digest(self) -> str:
        """SHA-256 (hex) of the weights and of all settings that change a vector: an index belongs to one of these."""
        digest = hashlib.sha256(repr(sorted(self._settings().items())).encode())
        for name, weights in sorted(self._model.state_dict().items()):
            digest.update(f"{name}|{tuple(weights.shape)}|".encode())
            digest.update(weights.detach().float().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def _settings(self) -> dict[str, Any]:
        modules = [(type(module).__name__, module.get_config_dict()) for module in self._model]
        own = {
            "prompts": repr(sorted(self._model.prompts.items())),
            "max_tokens": self._model.max_seq_length,
            "modules": repr(modules),
        }
        return self.config.model_dump(exclude={"path", "batch_size"}) | own

    def _to_device(self, value: Any) -> Any:
        return value.to(self._model.device) if isinstance(value, Tensor) else value

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
