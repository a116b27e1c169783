"""Texts to vectors: any encoder of sentence-transformers, its prefixes, and a digest that binds an index to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.models.loading import resolve_path
from regrad.retrieval.config import EncoderConfig

Vectors = NDArray[np.float32]
"""[N, D], a row a text."""


class Encoder:
    """A frozen text encoder. Raises `RetrievalError` if it cannot be loaded.

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
