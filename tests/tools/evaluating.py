"""A small evaluation on files of a test's own: questions, a corpus, and settings for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrad.bank.format import Layout
from regrad.bank.writer import BankWriter
from regrad.data.passages import Passage, encode_passages
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.records import Record
from regrad.gradients.extractor import AtomExtractor
from regrad.meta_init import MetaInit
from regrad.methods.registry import MethodConfig
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel
from regrad.settings import Settings, parse_settings


def write_set(folder: Path, passages: Sequence[Passage], questions: int = 6) -> None:
    """`corpus.jsonl`, and `questions.jsonl` with one question about each of the first passages."""
    (folder / "corpus.jsonl").write_bytes(encode_passages(passages))
    rows = [
        {"id": f"q{n}", "question": f"Who employs {p.title}?", "answers": [f"a{n}"], "passage_ids": [p.id]}
        for n, p in enumerate(passages[:questions])
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def method_settings(name: str, **values: Any) -> Any:
    """The settings of one method, of whichever class; wrong ones raise `ConfigError`, as where they are read."""

    class One(Settings):
        method: MethodConfig

    return parse_settings(One, {"method": {"name": name, **values}}, "test").method


def gradient_bank(lm: LanguageModel, meta_init: MetaInit, passages: Sequence[Passage], uri: str) -> dict[str, Tensor]:
    """A bank of the passages' gradients, and what is in it."""
    layout = Layout(fingerprint=meta_init.fingerprint, codec="float32", subspace=lm.subspace.to_json())
    writer, atoms = BankWriter(uri, layout), {}
    for item in AtomExtractor(lm, meta_init).extract(passages):
        assert item.atom is not None
        atoms[item.passage.id] = item.atom
        writer.add_atom(item.passage.id, item.passage.text_hash, item.atom)
    writer.commit()
    return atoms


def write_bank(uri: Path, meta_init: MetaInit, passages: Sequence[Passage]) -> None:
    """A bank of gradients that are all zero."""
    layout = Layout(fingerprint=meta_init.fingerprint, codec="float32", subspace=meta_init.subspace.to_json())
    writer = BankWriter(str(uri), layout)
    for passage in passages:
        writer.add_atom(passage.id, passage.text_hash, torch.zeros(meta_init.subspace.size))
    writer.commit()


def settings(folder: Path, model: ModelConfig, **changes: Any) -> EvalConfig:
    """Direct and RAG, the gold passage and random others."""
    passages = {"source": "gold", "corpus": str(folder / "corpus.jsonl"), "distractors": "random"}
    values: dict[str, Any] = {
        "output": str(folder / "out"),
        "models": {"tiny": model.model_dump()},
        "sets": [{"name": "people", "path": str(folder / "questions.jsonl"), "passages": passages}],
        "methods": ["direct", "rag"],
        "k": [1, 3],
        "max_new_tokens": 6,
    }
    return EvalConfig.model_validate(values | changes)


def record(question: str, right: bool, method: str = "rag", **changes: Any) -> Record:
    """One question's, with nothing special about it."""
    score = float(right)
    values: dict[str, Any] = {
        **{"set": "people", "method": method, "model": "tiny", "k": 1, "seed": 0},
        **{"question_id": question, "question": "?", "answers": ("a",), "kind": "open", "group": ""},
        **{"raw": "a", "prediction": "a", "em": score, "f1": score, "precision": score, "recall": score},
        **{"strict_correct": right, "strict_parsed": True, "release_correct": right, "release_parsed": True},
        **{"correct": right, "parsed": True, "passage_ids": (), "passage_scores": ()},
        **{"prompt_tokens": 10, "completion_tokens": 2, "milliseconds": 4.0, "bytes_fetched": 0},
    }
    return Record(**values | changes)
