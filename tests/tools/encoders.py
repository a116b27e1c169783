"""A text encoder for tests: bags of words, as sentence-transformers saves and loads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import regrad.lab
from regrad.data.passages import Passage


def bag_of_words(folder: Path, passages: Iterable[Passage]) -> str:
    """The path of an encoder whose vector has a place for each word of these passages; an existing one is kept."""
    if not folder.exists():
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import BoW

        words = {word for p in passages for word in re.findall(r"\w+", f"{p.title} {p.text}".lower())}
        bag = BoW(vocab=sorted(words), word_weights={})
        SentenceTransformer(modules=[bag], device="cpu").save(str(folder))
    return str(folder)


def random_transformer(folder: Path, layers: int = 2) -> str:
    """The path of a small BERT of random weights with the lab's tokens: as in a real one, padding costs last digits."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(regrad.lab.__file__).parent / "base/tokenizer.json"), pad_token="<pad>"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).eval().save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    words = Transformer(str(folder / "bert"), max_seq_length=128)
    SentenceTransformer(modules=[words, Pooling(32)], device="cpu").save(str(folder / "encoder"))
    return str(folder / "encoder")


def dpr_pair(folder: Path, projection: int = 0) -> tuple[str, str]:
    """The paths of a small DPR of random weights, of contexts and of questions, as transformers saves the two."""
    import torch
    from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(regrad.lab.__file__).parent / "base/tokenizer.json"), pad_token="<pad>"
    )
    config = DPRConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        projection_dim=projection,
        initializer_range=0.5,  # with the usual 0.02 all texts have nearly the same vector
    )
    torch.manual_seed(0)
    for kind, name in ((DPRContextEncoder, "contexts"), (DPRQuestionEncoder, "questions")):
        kind(config).eval().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "contexts"), str(folder / "questions")
