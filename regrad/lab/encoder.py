"""A text encoder for the lab that starts from nothing: the mean of its tokens' vectors, which are drawn.

Texts that share words have similar vectors, so it finds what a bag of words would; what words mean to each other is
left to training. It is saved in sentence-transformers' form, so the ordinary loader opens it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from regrad.errors import ModelError
from regrad.lab.config import LabEncoderConfig
from regrad.storage import directory_writer

_CARD = "modules.json"
_BASE = Path(__file__).parent / "base"


def write_encoder(config: LabEncoderConfig) -> str:
    """Write `config.output`; returns the closing line. Raises `ModelError` without sentence-transformers."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    except ModuleNotFoundError as error:
        raise ModelError(
            "the lab's encoder needs sentence-transformers: pip install 'regrad[dense]'", code="no_encoders"
        ) from error
    tokenizer = Tokenizer.from_file(str(_BASE / "tokenizer.json"))
    draws = torch.Generator().manual_seed(config.seed)
    vectors_VD = torch.randn(tokenizer.get_vocab_size(), config.dimensions, generator=draws)
    # A word at the beginning of a text is another token than after a space, so every text begins with one.
    prompts = {"query": " ", "document": " "}
    model = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, vectors_VD / config.dimensions**0.5)], prompts=prompts, device="cpu"
    )
    with directory_writer(config.output, _CARD) as folder:
        model.save(str(folder), create_model_card=False)
    return f"encoder at {config.output}: {len(vectors_VD)} tokens, {config.dimensions} dimensions, untrained"
