from __future__ import annotations

import pytest

from regrad.corpus import Passage
from regrad.errors import MethodError
from regrad.methods import METHODS, get_method
from regrad.prompts import PromptFormat

PASSAGES = [Passage("best", "Best", "first"), Passage("next", "Next", "second")]


def test_only_rag_and_icl_put_passages_in_the_prompt() -> None:
    prompts = {name: method.prompt(PromptFormat(), "Who?", PASSAGES) for name, method in METHODS.items()}
    assert prompts["direct"] == prompts["regrad"] == "Question: Who?\nAnswer:"
    assert prompts["rag"] == prompts["regrad+icl"]
    assert prompts["rag"].index("second") < prompts["rag"].index("first") < prompts["rag"].index("Who?")


def test_which_methods_retrieve_and_which_apply_gradients() -> None:
    assert [name for name, m in METHODS.items() if m.retrieves] == ["rag", "regrad", "regrad+icl", "regrad-online"]
    assert [name for name, m in METHODS.items() if m.applies_gradients] == ["regrad", "regrad+icl", "regrad-online"]


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(MethodError, match=r"unknown method 'regard'; did you mean 'regrad'\?"):
        get_method("regard")
