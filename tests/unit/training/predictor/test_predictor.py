"""A predictor learns what steps on a context give, survives being killed, and belongs to one base and one W0."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import MethodError, ModelError, TrainingError
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace
from regrad.settings import parse_settings
from regrad.training.callbacks import Silent
from regrad.training.checkpoint import TrainCheckpoint
from regrad.training.loop import resume, train_on
from regrad.training.lora.examples import Example
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.predictor.answers import answer_gradients
from regrad.training.predictor.artifact import CARD, UpdatePredictor, added
from regrad.training.predictor.config import (
    ContextConfig,
    PredictorConfig,
    PredictorObjective,
    StepsConfig,
    UpdateSpace,
)
from regrad.training.predictor.contexts import TaskContexts, context_of, states_of, steps_on
from regrad.training.predictor.learner import PredictorLearner, contexts_of, predictor_in_process
from tests.tools.adapting import static_lora, untrained_predictor
from tests.tools.refusals import refused


@pytest.fixture
def adapter(tiny: LanguageModel, tmp_path: Path) -> StaticLora:
    return static_lora(tiny, 2, tmp_path / "lora")


@pytest.fixture
def tasks(tmp_path: Path, passages: list[Passage]) -> Path:
    """Four tasks of three passages and two questions each."""
    path = tmp_path / "tasks.jsonl"
    records = []
    for n in range(4):
        asked = [{"question": f"Who was {p.title}?", "answer": f"b{n}", "context": [0, 1]} for p in passages[n : n + 2]]
        shown = [{"id": p.id, "title": p.title, "text": p.text} for p in passages[n : n + 3]]
        records.append({"id": f"t{n}", "passages": shown, "questions": asked})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def settings(tiny: LanguageModel, tmp_path: Path, tasks: Path, **changes: Any) -> PredictorConfig:
    values: dict[str, Any] = {
        "model": tiny.config.model_dump(),
        "adapter": str(tmp_path / "lora"),
        "tasks": [str(tasks)],
        "output": str(tmp_path / "predictor"),
        "contexts": 4,
        "context": {"demonstrations": 2, "k": 1},
        "inner": {"steps": 2, "lr": 0.1},
        "network": {"hidden": 16, "code": 8, "basis": 2, "largest_share": 0.5},
        "optimizer": {"steps": 6, "batch_size": 2, "lr": 1e-2},
    }
    return parse_settings(PredictorConfig, values | changes, "test")


@pytest.mark.slow
@pytest.mark.parametrize(("space", "left"), [("factors", 0.2), ("products", 4.0)])
def test_a_predictor_learns_one_context_by_heart_and_its_update_does_what_the_steps_do(
    space: UpdateSpace, left: float, tiny: LanguageModel, adapter: StaticLora, tmp_path: Path, tasks: Path
) -> None:
    """Six projections. The steps' products have rank 4, so that a prediction of rank 2 cannot be all of them."""
    network = {"hidden": 16, "code": 8, "basis": 4, "largest_share": 1.0}
    optimizer = {"steps": 300, "batch_size": 1, "lr": 2e-2, "weight_decay": 0}
    config = settings(
        tiny, tmp_path, tasks, space=space, contexts=1, network=network, optimizer=optimizer, inner={"lr": 0.1}
    )
    made = predictor_in_process(config)
    assert made.notes["losses"][0] > 5
    assert sum(made.notes["losses"][-20:]) / 20 < left
    (context,) = TaskContexts(tiny, config.tasks, config.context, 1)
    end_P = steps_on(tiny, context, adapter.subspace, adapter.values, config.inner)
    assert end_P is not None
    (update_P,) = made.predict(tiny, adapter, [context])

    def state(subspace: Subspace, vector: Tensor) -> Tensor:
        return states_of(tiny, [context], {subspace: vector})

    wanted, nothing = state(adapter.subspace, end_P), state(adapter.subspace, adapter.values)
    assert (state(*added(adapter, update_P, space)) - wanted).norm() < 0.5 * (nothing - wanted).norm()
    torch.testing.assert_close(made.constant, end_P - adapter.values, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["factors", "products"])
def test_with_objective_answers_the_update_of_a_context_makes_another_answer_likely(
    space: UpdateSpace, tiny: LanguageModel, adapter: StaticLora, tmp_path: Path, tasks: Path
) -> None:
    """One context and one question: its loss falls below what W0 alone has, and the predicted update is why."""
    optimizer = {"steps": 60, "batch_size": 1, "lr": 2e-2, "weight_decay": 0}
    config = settings(tiny, tmp_path, tasks, objective="answers", space=space, contexts=1, optimizer=optimizer)
    made = predictor_in_process(config)
    (drawn,) = TaskContexts(tiny, config.tasks, config.context.model_copy(update={"demonstrations": 3}), 1)

    def loss(update_P: Tensor) -> float:
        (found,), _ = answer_gradients(tiny, adapter, space, update_P[None], [drawn[-1]])
        return float(found)

    (update_P,) = made.predict(tiny, adapter, [drawn[:-1]])
    before = loss(torch.zeros_like(update_P))
    assert loss(update_P) < 0.7 * before
    assert made.notes["losses"][-1] < 0.7 * before
    assert made.objective == "answers"
    assert made.constant.norm() > 0


@pytest.mark.parametrize("space", ["factors", "products"])
def test_the_gradient_by_an_update_is_that_of_the_answers_loss(
    space: UpdateSpace, tiny: LanguageModel, adapter: StaticLora, passages: list[Passage]
) -> None:
    """By central differences along a random direction, each question with its own update."""
    asked = context_of(tiny, [Question("", f"Who is {p.title}?", (p.title,)) for p in passages[:2]], ContextConfig())
    rng = torch.Generator().manual_seed(0)
    updates_UP, direction_UP = (0.1 * torch.randn(2, adapter.subspace.size, generator=rng) for _ in range(2))
    _, gradients_UP = answer_gradients(tiny, adapter, space, updates_UP, asked)
    step = 1e-2
    plus, minus = (
        answer_gradients(tiny, adapter, space, updates_UP + sign * step * direction_UP, asked)[0] for sign in (1, -1)
    )
    torch.testing.assert_close((gradients_UP * direction_UP).sum(-1), (plus - minus) / (2 * step), rtol=2e-2, atol=1e-3)


class Keeper(Silent):
    """Keeps the checkpoint of one step, and ends the run there."""

    def __init__(self, folder: Path, last: int) -> None:
        self._folder, self._last = folder, last

    def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
        if checkpoint.state.step == self._last:
            checkpoint.save(self._folder)
            raise KeyboardInterrupt


@pytest.mark.parametrize("objective", ["steps", "answers"])
def test_a_run_that_was_stopped_gives_the_same_bits(
    objective: PredictorObjective, tiny: LanguageModel, adapter: StaticLora, tmp_path: Path, tasks: Path
) -> None:
    """Also the mean update, although what the first run remembered of the contexts is gone."""
    config = settings(tiny, tmp_path, tasks, checkpoints={"every": 3}, objective=objective)
    whole = predictor_in_process(config)
    contexts = contexts_of(tiny, config)

    def run(listener: Silent, checkpoint: Path | None) -> UpdatePredictor:
        learner = PredictorLearner(tiny, config, adapter)
        return learner.product(train_on(learner, contexts, config, listener, checkpoint=nullcontext(checkpoint)))

    with pytest.raises(KeyboardInterrupt):
        run(Keeper(tmp_path / "kept", 3), None)
    again = run(Silent(), tmp_path / "kept")
    assert again.digest == whole.digest
    assert again.notes["losses"] == whole.notes["losses"]
    other = PredictorLearner(tiny, config, static_lora(tiny, 2, tmp_path / "other", seed=5))
    with refused(TrainingError, "checkpoint_of_another_base"):
        resume(other, nullcontext(tmp_path / "kept"))


def test_what_is_saved_is_what_is_loaded_and_damage_is_found(
    tiny: LanguageModel, adapter: StaticLora, tmp_path: Path
) -> None:
    made = untrained_predictor(tiny, adapter, tmp_path / "made", notes={"steps": 1})
    loaded = UpdatePredictor.load(tmp_path / "made")
    assert (loaded.digest, loaded.notes, loaded.space) == (made.digest, {"steps": 1}, "factors")
    context = [Example((1, 5, 9, 7), 2)]
    assert torch.equal(loaded.predict(tiny, adapter, [context]), made.predict(tiny, adapter, [context]))
    card = json.loads((tmp_path / "made" / CARD).read_text())
    with refused(MethodError, "predictor_not_found"):
        UpdatePredictor.load(tmp_path / "nowhere")
    for changes in (
        {"space": "products"},
        {"states": 31},
        {"objective": "answers"},
        {"objective": "guesses"},
        {"adapter": "other"},
        {"network": {"code": -1}},
    ):
        (tmp_path / "made" / CARD).write_text(json.dumps(card | changes))
        with refused(MethodError, "predictor_damaged"):
            UpdatePredictor.load(tmp_path / "made")
    (tmp_path / "made" / CARD).write_text(json.dumps(card | {"format": 9}))
    with refused(MethodError, "predictor_other_format", found=9, expected=1):
        UpdatePredictor.load(tmp_path / "made")
    untrained_predictor(tiny, adapter, tmp_path / "nan", constant=made.constant * float("nan"))
    with refused(MethodError, "predictor_damaged"):
        UpdatePredictor.load(tmp_path / "nan")


def test_a_context_is_its_demonstrations_with_their_own_passages_and_an_empty_or_long_one_is_refused(
    tiny: LanguageModel, passages: list[Passage]
) -> None:
    one, other = (Question("", f"Who is {p.title}?", (p.title,), passages=(p,)) for p in passages[:2])
    found = context_of(tiny, [one, other], ContextConfig())
    texts = [tiny.tokenizer.decode(example.ids) for example in found]
    assert all(p.text in text for p, text in zip(passages, texts, strict=False))
    without = context_of(tiny, [one], ContextConfig(max_tokens=30))
    assert passages[0].text not in tiny.tokenizer.decode(without[0].ids)
    with refused(MethodError, "no_demonstrations"):
        context_of(tiny, [], ContextConfig())
    with refused(MethodError, "demonstration_too_long", limit=256):
        context_of(tiny, [Question("", " ".join(["Who?"] * 300), ("a",))], ContextConfig())


def test_states_that_are_not_finite_and_steps_that_diverge_are_found(
    tiny: LanguageModel, adapter: StaticLora, passages: list[Passage]
) -> None:
    context = context_of(tiny, [Question("", "Who?", ("a",))], ContextConfig())
    with refused(ModelError, "state_not_finite"):
        states_of(tiny, [context], {adapter.subspace: torch.full_like(adapter.values, 1e30)})
    far = StepsConfig(lr=1e30, steps=3)
    assert steps_on(tiny, context, adapter.subspace, adapter.values, far) is None


def test_a_predictor_larger_than_a_tenth_of_its_base_and_questions_that_do_not_fit_are_refused(
    tiny: LanguageModel, adapter: StaticLora, tmp_path: Path, tasks: Path
) -> None:
    large = settings(tiny, tmp_path, tasks, network={"hidden": 512, "largest_share": 0.1})
    with refused(TrainingError, "predictor_too_large"):
        PredictorLearner(tiny, large, adapter)
    contexts = TaskContexts(tiny, [str(tasks)], ContextConfig(demonstrations=30), 4)
    with refused(TrainingError, "too_few_demonstrations", expected=30):
        contexts[0]
