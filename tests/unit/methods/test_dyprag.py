"""DyPRAG's methods: how generated LoRAs become one update, what they need, and what does not belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regrad.data.passages import Passage
from regrad.errors import MethodError, ModelError
from regrad.methods.base import Evidence, Method, NoAtoms, Plan, open_question
from regrad.methods.dyprag import joined
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace, Update
from tests.tools.adapting import untrained_translator
from tests.tools.evaluating import method_settings
from tests.tools.refusals import refused


def opened(tiny: LanguageModel, folder: Path, name: str = "dyprag", **values: Any) -> Method:
    settings = method_settings(name, translator=str(folder / "translator"), **values)
    settings.check()
    method: Method = settings.open(tiny)
    return method


def plan(method: Method, passages: list[Passage], gamma: float = 1.0) -> Plan:
    evidence = Evidence(open_question("Who?"), tuple(passages), gamma=gamma)
    return method.answer_plans([evidence], NoAtoms())[0]


def products(update: Update) -> dict[str, Tensor]:
    """The weights that an update adds, by projection."""
    tensors = update.subspace.unflatten(update.vector)
    return {
        name: update.subspace.scaling * tensors[f"{name}.B"] @ tensors[f"{name}.A"]
        for name, _, _ in update.subspace.modules
    }


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_a_sum_is_of_products_with_their_scale_and_the_released_form_is_the_product_of_means_without(
    tiny: LanguageModel, gamma: float
) -> None:
    subspace = Subspace(tiny.subspace.modules, 2, 16.0)
    loras = list(torch.randn(3, subspace.size, generator=torch.Generator().manual_seed(2)))
    parts = [subspace.unflatten(lora) for lora in loras]
    total, released = (products(joined(subspace, loras, how, gamma)) for how in ("sum", "released"))
    for name, _, _ in subspace.modules:
        a, b = (torch.stack([part[f"{name}.{factor}"] for part in parts]) for factor in ("A", "B"))
        torch.testing.assert_close(total[name], gamma * 16.0 * (b @ a).sum(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(released[name], gamma * b.mean(0) @ a.mean(0), rtol=1e-4, atol=1e-4)


def test_each_passage_is_read_alone_and_once_and_is_in_the_prompt_only_if_the_method_says_so(
    tiny: LanguageModel, tmp_path: Path, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = untrained_translator(tiny, tmp_path / "translator")
    method = opened(tiny, tmp_path)
    alone, shown = plan(method, passages[:2]), plan(opened(tiny, tmp_path, "dyprag+icl"), passages[:2])
    expected = joined(made.subspace, [made.lora_of(tiny, passage) for passage in passages[:2]], "sum")
    assert torch.equal(alone.updates[0].vector, expected.vector)
    assert torch.equal(shown.updates[0].vector, expected.vector)
    assert passages[0].text not in alone.prompt.text(tiny.config.prompts)
    assert passages[0].text in shown.prompt.text(tiny.config.prompts)
    read: list[Passage] = []
    lora = method._generated  # type: ignore[attr-defined]
    monkeypatch.setattr(method, "_generated", lambda passage: read.append(passage) or lora(passage))
    method.plan([Evidence(open_question("Who?"), tuple(passages[:2]))] * 3, NoAtoms())
    assert read == passages[:2]
    (bare,) = [plan(method, [])]
    assert (bare.updates, [note.policy for note in bare.notes]) == ((), ["no-passages"])


def test_a_translator_of_another_base_and_a_state_that_is_not_finite_are_refused(
    tiny: LanguageModel, tmp_path: Path, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused(MethodError, "setting_missing", setting="translator"):
        method_settings("dyprag").check()
    with refused(MethodError, "translator_not_found"):
        method_settings("dyprag", translator=str(tmp_path / "translator")).check()
    untrained_translator(tiny, tmp_path / "translator")
    method = opened(tiny, tmp_path)
    hidden = tiny.hidden
    monkeypatch.setattr(tiny, "hidden", lambda ids: hidden(ids) * float("inf"))
    with refused(ModelError, "state_not_finite"):
        plan(method, passages[:1])
    monkeypatch.undo()
    with torch.no_grad():
        next(tiny.model.parameters()).mul_(1.01)
    with refused(MethodError, "translator_of_another_base"):
        opened(tiny, tmp_path)
