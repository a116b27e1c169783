"""Parametric retrieval: a document's gradient is computed once, stored, and applied for the questions that need it.

What a notebook or a script needs can be imported from here; each name is loaded when it is first used, so that
`import regrad` is quick and a command that needs no model loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regrad.bank.reader import BankReader
    from regrad.client import AnswerClient
    from regrad.data.corpora import read_passages
    from regrad.data.passages import Passage
    from regrad.errors import RegradError
    from regrad.gradients.extractor import AtomExtractor
    from regrad.inference.decoding import GenerationRequest, generate
    from regrad.meta_init import MetaInit
    from regrad.methods.registry import METHODS
    from regrad.models.loading import load_language_model
    from regrad.retrieval.base import open_retriever

_WHERE = {
    "AnswerClient": "client",
    "AtomExtractor": "gradients.extractor",
    "BankReader": "bank.reader",
    "GenerationRequest": "inference.decoding",
    "METHODS": "methods.registry",
    "MetaInit": "meta_init",
    "Passage": "data.passages",
    "RegradError": "errors",
    "generate": "inference.decoding",
    "load_language_model": "models.loading",
    "open_retriever": "retrieval.base",
    "read_passages": "data.corpora",
}

__all__ = [
    "METHODS",
    "AnswerClient",
    "AtomExtractor",
    "BankReader",
    "GenerationRequest",
    "MetaInit",
    "Passage",
    "RegradError",
    "generate",
    "load_language_model",
    "open_retriever",
    "read_passages",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'regrad' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"regrad.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
