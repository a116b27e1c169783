"""Fine-tuning with the adapters of each question's passages in force: against the same steps written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion
from regrad.errors import AtomNotFound, MethodError
from regrad.lab.world import World
from regrad.methods.base import Evidence, open_question
from regrad.models.batching import sequence_losses
from regrad.models.loading import LanguageModel
from regrad.settings import parse_settings
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import example_batch, read_examples
from regrad.training.lora.finetuning import finetune_in_process
from regrad.training.lora.in_force import Coverage, adapters_manifest, check_coverage
from regrad.training.lora.lora_artifact import join
from tests.tools.adapting import adapter_bank, static_lora
from tests.tools.evaluating import gradient_bank, method_settings
from tests.tools.refusals import refused, refused_settings

Settings = Callable[..., FinetuneConfig]


@pytest.fixture
def settings(tmp_path: Path, tiny: LanguageModel) -> Settings:
    def make(**changes: object) -> FinetuneConfig:
        optimizer = {
            "steps": 3,
            "batch_size": 2,
            "lr": 1e-2,
            "clip": None,
            "warmup_fraction": 0,
            "schedule": "constant",
        }
        values = {"model": tiny.config.model_dump(), "objective": "questions", "output": "o", "optimizer": optimizer}
        places = {"tasks": f"{tmp_path}/tasks.jsonl", "adapters": f"{tmp_path}/adapters"}
        return parse_settings(FinetuneConfig, {**values, **places, **changes}, "test")

    return make


def write_tasks(path: Path, known: list[Passage], other: Passage) -> None:
    """Two questions: two passages with adapters, and one with and one without."""
    asked = (TaskQuestion("Who is it?", "me", (0, 1)), TaskQuestion("And where?", "here", (2, 3)))
    path.write_text(json.dumps(Task((*known, other), asked).to_record()) + "\n")


def test_every_answer_is_learned_under_its_own_passages_adapters(
    tiny: LanguageModel, world: World, passages: list[Passage], tmp_path: Path, settings: Settings
) -> None:
    subspace, values, known = adapter_bank(tiny, world, str(tmp_path / "adapters"), layers="all")
    write_tasks(tmp_path / "tasks.jsonl", known, passages[-1])
    made = finetune_in_process(settings())

    phi = tiny.subspace.initial(0).requires_grad_()
    optimizer = torch.optim.AdamW([phi], lr=1e-2, weight_decay=0)
    examples = read_examples(settings(), tiny)
    in_force = [[values[known[0].id], values[known[1].id]], [values[known[2].id]]]
    for _ in range(3):
        losses = []
        for example, adapters in zip(examples, in_force, strict=True):
            with tiny.applied(join([(tiny.subspace, phi), *((subspace, adapter) for adapter in adapters)])):
                losses.append(sequence_losses(tiny, example_batch(tiny, [example])).mean())
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    torch.testing.assert_close(made.values, phi.detach(), rtol=1e-3, atol=1e-4)
    without = finetune_in_process(settings(adapters=None))
    assert not torch.allclose(made.values, without.values, rtol=1e-3, atol=1e-3)


def test_what_was_tuned_with_adapters_in_force_is_asked_with_them(
    tiny: LanguageModel, world: World, passages: list[Passage], tmp_path: Path, settings: Settings
) -> None:
    bank = str(tmp_path / "adapters")
    subspace, _, known = adapter_bank(tiny, world, bank, layers="all")
    write_tasks(tmp_path / "tasks.jsonl", known, passages[-1])
    for name, changes in {"tuned": {}, "alone": {"adapters": None}}.items():
        finetune_in_process(settings(**changes)).save(tmp_path / name)
    config = method_settings("ft-prag", bank=bank, adapter=str(tmp_path / "tuned"))
    config.check()
    method = config.open(tiny)
    (plan,) = method.plan([Evidence(open_question("Who?"), tuple(known[:2]))], method.open_atoms())
    assert plan.updates[0].subspace == tiny.subspace
    assert plan.updates[1].subspace.modules == subspace.modules and plan.updates[1].subspace.rank == 2 * subspace.rank
    alone = config.model_copy(update={"adapter": str(tmp_path / "alone")})
    with refused(MethodError, "adapters_of_another_base", base=f"the adapter at {tmp_path}/alone"):
        alone.check()


def test_only_adapters_of_the_base_alone_can_be_in_force_and_only_with_questions(
    tiny: LanguageModel, world: World, passages: list[Passage], tmp_path: Path, settings: Settings, meta_init: object
) -> None:
    lora = static_lora(tiny, 2, tmp_path / "static")
    known = adapter_bank(tiny, world, str(tmp_path / "adapters"), lora)[2]
    write_tasks(tmp_path / "tasks.jsonl", known, passages[-1])
    with refused(MethodError, "adapters_of_another_base", base="the base model alone"):
        finetune_in_process(settings())
    gradient_bank(tiny, meta_init, passages[:2], str(tmp_path / "gradients"))  # type: ignore[arg-type]
    for place, found in (("gradients", "gradient"), ("nothing", None)):
        with refused(MethodError, "wrong_bank", found=found):
            finetune_in_process(settings(adapters=f"{tmp_path}/{place}"))
    with refused_settings("adapters_without_questions"):
        settings(objective="passages", corpus="c")


def test_passages_without_an_adapter_are_counted_or_refused_before_training(
    tiny: LanguageModel,
    world: World,
    passages: list[Passage],
    tmp_path: Path,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank = str(tmp_path / "adapters")
    known = adapter_bank(tiny, world, bank)[2]
    changed = Passage(known[0].id, known[0].title, "Another text.")
    asked = (TaskQuestion("Who?", "me", (0, 1)), TaskQuestion("Where?", "here", (2, 1)))
    (tmp_path / "tasks.jsonl").write_text(json.dumps(Task((known[1], passages[-1], changed), asked).to_record()) + "\n")

    def coverage(**changes: object) -> Coverage:
        config = settings(**changes)
        manifest = adapters_manifest(config)
        assert manifest is not None
        return check_coverage(config, manifest)

    assert coverage() == Coverage(3, 2, passages[-1].id)
    assert f"2 of 3 passages without an adapter: they are left out (the first: '{passages[-1].id}')" in caplog.text
    assert coverage(k=1) == Coverage(2, 1, changed.id), "only those that are in force count"

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr("regrad.training.lora.finetuning.load_language_model", loaded)
    with refused(AtomNotFound, "adapters_missing", uri=bank, missing=2, passages=3):
        finetune_in_process(settings(on_missing="fail"))
    (tmp_path / "tasks.jsonl").write_text(json.dumps(Task(tuple(passages[-2:]), asked[:1]).to_record()) + "\n")
    with refused(MethodError, "bank_of_other_passages", uri=bank, missing=2, passages=2):
        finetune_in_process(settings())
