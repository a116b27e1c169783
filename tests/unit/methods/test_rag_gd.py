"""RAG-GD's methods: what of a question they use, that nothing of it stays behind, and what does not belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import MethodError
from regrad.evaluation.config import EvalBatchConfig
from regrad.evaluation.demonstrations import demonstrations_digest
from regrad.evaluation.runner import Generator
from regrad.inference.rows import DecodingRequest
from regrad.methods.base import Evidence, Method, NoAtoms, Plan, open_question
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.methods.rag_gd import TtSgdConfig, exchanged
from regrad.models.loading import LanguageModel
from regrad.models.lora import BatchedLora
from regrad.models.subspace import Subspace
from regrad.training.lora.lora_artifact import StaticLora, join
from tests.tools.adapting import static_lora, untrained_predictor
from tests.tools.evaluating import method_settings
from tests.tools.refusals import refused

TOKENS = 6


@pytest.fixture
def adapter(tiny: LanguageModel, tmp_path: Path) -> StaticLora:
    return static_lora(tiny, 2, tmp_path / "lora")


@pytest.fixture
def shown(passages: list[Passage]) -> tuple[Question, ...]:
    return tuple(Question("", f"Who is {p.title}?", (f"a{n}",), passages=(p,)) for n, p in enumerate(passages[:3]))


def opened(name: str, tiny: LanguageModel, folder: Path, **values: Any) -> Method:
    if name.startswith(("rag-gd", "hypertuning")) and name != "rag-gd-base":
        values |= {"predictor": str(folder / "predictor")}
    settings = method_settings(name, adapter=str(folder / "lora"), **values)
    settings.check()
    method: Method = settings.open(tiny)
    return method


def plans(method: Method, shown: Sequence[Question], gamma: float = 1.0, count: int = 1) -> list[Plan]:
    evidence = Evidence(open_question("Who?"), demonstrations=tuple(shown), gamma=gamma)
    return method.answer_plans([evidence] * count, NoAtoms())


def test_steps_are_plain_gradient_descent_on_the_answers(
    tiny: LanguageModel, adapter: StaticLora, tmp_path: Path, shown: tuple[Question, ...]
) -> None:
    (plan,) = plans(opened("tt-sgd", tiny, tmp_path, steps={"steps": 2, "lr": 0.2}), shown)
    values = adapter.values.clone().requires_grad_()
    for _ in range(2):
        losses = []
        for one in shown:
            prompt = tiny.encode_prompt(tiny.config.prompts.prompt_for(one, one.passages))
            ids = [*prompt, *tiny.encode(tiny.config.prompts.reply(one.answers[0])), *tiny.ending]
            with BatchedLora(tiny.model, adapter.subspace).applied(values):
                logits = tiny.model(input_ids=torch.tensor([ids])).logits[0]
            wanted = torch.tensor(ids[len(prompt) :])
            losses.append(torch.nn.functional.cross_entropy(logits[len(prompt) - 1 : -1], wanted))
        (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), values)
        values = (values - 0.2 * gradient).detach().requires_grad_()
    torch.testing.assert_close(plan.updates[0].vector, values.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["tt-sgd", "rag-gd"])
def test_other_rows_and_later_questions_do_not_notice(
    name: str, tiny: LanguageModel, adapter: StaticLora, tmp_path: Path, shown: tuple[Question, ...]
) -> None:
    """To the last bit: the weights, a row of the base model beside it, and the same question asked again."""
    untrained_predictor(tiny, adapter, tmp_path / "predictor")
    generator = Generator(tiny, EvalBatchConfig(rows=2))
    base = DecodingRequest("Question: Who?\nAnswer:", (), TOKENS)
    weights, logits = tiny.identity(), tiny.model(input_ids=torch.tensor([[1, 5, 9]])).logits
    method = opened(name, tiny, tmp_path, **({"steps": {"lr": 1.0}} if name == "tt-sgd" else {}))
    (first,) = plans(method, shown)
    (other,) = plans(method, shown[1:])
    (again,) = plans(method, shown)
    assert torch.equal(first.updates[0].vector, again.updates[0].vector)
    assert not torch.equal(first.updates[0].vector, other.updates[0].vector)
    alone = generator.answers([base, base])
    beside = generator.answers([base, replace(base, updates=first.updates)])
    later = generator.answers([base, base])
    assert alone[0].text == beside[0].text == later[0].text == later[1].text
    assert torch.equal(tiny.model(input_ids=torch.tensor([[1, 5, 9]])).logits, logits)
    assert (tiny.identity(), StaticLora.load(tmp_path / "lora").digest) == (weights, adapter.digest)


def test_an_update_of_products_is_added_to_w0_exactly(
    tiny: LanguageModel, adapter: StaticLora, tmp_path: Path, shown: tuple[Question, ...]
) -> None:
    untrained_predictor(tiny, adapter, tmp_path / "predictor")
    (plain,) = plans(opened("rag-gd", tiny, tmp_path), shown)
    predicted = plain.updates[0].vector - adapter.values
    untrained_predictor(tiny, adapter, tmp_path / "predictor", space="products")
    for gamma in (1.0, 0.25):
        (plan,) = plans(opened("rag-gd", tiny, tmp_path), shown, gamma)
        ((subspace, expected),) = join([(adapter.subspace, v) for v in (adapter.values, predicted)], [1, gamma]).items()
        assert subspace == plan.updates[0].subspace == Subspace(adapter.subspace.modules, 4, adapter.subspace.scaling)
        torch.testing.assert_close(plan.updates[0].vector, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["tt-sgd", "rag-gd", "rag-gd-shuffled", "rag-gd-constant"])
def test_without_gamma_w0_is_left(
    name: str, tiny: LanguageModel, adapter: StaticLora, tmp_path: Path, shown: tuple[Question, ...]
) -> None:
    untrained_predictor(tiny, adapter, tmp_path / "predictor")
    method = opened(name, tiny, tmp_path)
    (none,), (all_of_it,) = plans(method, shown, 0.0), plans(method, shown)
    assert torch.equal(none.updates[0].vector, adapter.values)
    assert not torch.equal(all_of_it.updates[0].vector, adapter.values)


def test_the_controls_see_other_answers_and_no_demonstration(
    tiny: LanguageModel, adapter: StaticLora, tmp_path: Path, shown: tuple[Question, ...]
) -> None:
    made = untrained_predictor(tiny, adapter, tmp_path / "predictor")
    wrong = exchanged(shown)
    assert [one.answers for one in wrong] == [("a1",), ("a2",), ("a0",)]
    assert [replace(one, answers=()) for one in wrong] == [replace(one, answers=()) for one in shown]
    (shuffled,), (of_wrong,) = (
        plans(opened("rag-gd-shuffled", tiny, tmp_path), shown),
        plans(opened("rag-gd", tiny, tmp_path), wrong),
    )
    assert torch.equal(shuffled.updates[0].vector, of_wrong.updates[0].vector)
    (constant,) = plans(opened("rag-gd-constant", tiny, tmp_path), ())
    torch.testing.assert_close(constant.updates[0].vector, adapter.values + made.constant)
    with refused(MethodError, "nothing_to_exchange", demonstrations=1):
        exchanged(shown[:1])


def test_demonstrations_are_in_the_prompt_only_if_asked_for_and_each_context_is_worked_on_once(
    tiny: LanguageModel, adapter: StaticLora, tmp_path: Path, shown: tuple[Question, ...], monkeypatch: Any
) -> None:
    untrained_predictor(tiny, adapter, tmp_path / "predictor")
    (hidden,) = plans(opened("rag-gd", tiny, tmp_path), shown)
    (visible,) = plans(opened("rag-gd", tiny, tmp_path, in_prompt=True), shown)
    assert shown[0].question not in hidden.prompt.text(tiny.config.prompts)
    assert shown[0].question in visible.prompt.text(tiny.config.prompts)
    seen: list[int] = []
    method = opened("tt-sgd", tiny, tmp_path)
    updates = method.updates  # type: ignore[attr-defined]
    monkeypatch.setattr(
        method, "updates", lambda contexts, gammas: seen.append(len(contexts)) or updates(contexts, gammas)
    )
    assert len(plans(method, shown, count=5)) == 5
    assert seen == [1]


def test_what_does_not_belong_together_is_refused_before_any_work(
    tiny: LanguageModel, adapter: StaticLora, tmp_path: Path, shown: tuple[Question, ...]
) -> None:
    untrained_predictor(tiny, adapter, tmp_path / "predictor", adapter="f" * 16)
    with refused(MethodError, "predictor_of_another_adapter", found=adapter.digest):
        method_settings("rag-gd", adapter=str(tmp_path / "lora"), predictor=str(tmp_path / "predictor")).check()
    untrained_predictor(tiny, adapter, tmp_path / "predictor", base_identity="e" * 64)
    with refused(MethodError, "predictor_of_another_base"):
        opened("rag-gd", tiny, tmp_path)
    untrained_predictor(tiny, adapter, tmp_path / "predictor", objective="answers")
    with refused(MethodError, "predictor_of_another_objective", expected="steps"):
        opened("rag-gd", tiny, tmp_path)
    opened("hypertuning", tiny, tmp_path)
    opened("rag-gd-shuffled", tiny, tmp_path)  # a control of either
    untrained_predictor(tiny, adapter, tmp_path / "predictor")
    with refused(MethodError, "predictor_of_another_objective", expected="answers"):
        opened("hypertuning", tiny, tmp_path)
    with refused(MethodError, "setting_missing", setting="predictor"):
        method_settings("rag-gd", adapter=str(tmp_path / "lora")).check()
    with refused(MethodError, "setting_missing", setting="adapter"):
        method_settings("tt-sgd").check()
    with refused(MethodError, "no_demonstrations"):
        plans(opened("tt-sgd", tiny, tmp_path), ())
    with refused(MethodError, "steps_not_finite", steps=5):
        plans(opened("tt-sgd", tiny, tmp_path, steps={"lr": 1e30}), shown)


def test_the_passages_of_demonstrations_count_for_methods_that_read_them(shown: tuple[Question, ...]) -> None:
    other = (replace(shown[0], passages=shown[1].passages), *shown[1:])
    keys = [[demonstrations_digest(each, TtSgdConfig.READS_DEMONSTRATIONS) for each in (shown, other)]]
    keys += [[demonstrations_digest(each, PromptOnlyConfig.READS_DEMONSTRATIONS) for each in (shown, other)]]
    assert [len(set(pair)) for pair in keys] == [2, 1]
