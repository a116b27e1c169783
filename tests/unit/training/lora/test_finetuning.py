"""Fine-tuning one LoRA: a run that goes on from a checkpoint, epochs, a loss that is not finite, and the artefact."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from regrad.data.passages import Passage
from regrad.errors import MethodError, TrainingError
from regrad.models.loading import LanguageModel
from regrad.settings import parse_settings
from regrad.training.callbacks import Silent, StepReport
from regrad.training.checkpoint import TrainCheckpoint
from regrad.training.loop import loop_of, resume
from regrad.training.lora.batched import RowTrainer
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import (
    Example,
    Examples,
    passage_example,
)
from regrad.training.lora.finetuning import (
    LoraLearner,
    usable,
)
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.sampler import batches_of
from tests.tools.refusals import refused


def settings(lm: LanguageModel, **changes: Any) -> FinetuneConfig:
    data: dict[str, Any] = {"model": lm.config.model_dump(), "objective": "passages", "corpus": "c", "output": "o"}
    data["optimizer"] = {"steps": 6, "batch_size": 4, "lr": 1e-2, **changes.pop("optimizer", {})}
    return parse_settings(FinetuneConfig, {**data, "checkpoints": {"every": 2}, **changes}, "test")


class Keeper(Silent):
    def __init__(self, folder: Path) -> None:
        self.reports: list[StepReport] = []
        self.folder = folder

    def report(self, report: StepReport) -> None:
        self.reports.append(report)

    def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
        checkpoint.save(self.folder / str(checkpoint.state.step))


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_numbers(
    tiny: LanguageModel, passages: list[Passage], tmp_path: Path
) -> None:
    config = settings(tiny)
    examples = [passage_example(tiny, passage) for passage in passages]
    keeper, whole = Keeper(tmp_path), LoraLearner(tiny, config)
    state = loop_of(whole, config, len(examples), keeper).run(batches_of(examples, config))
    resumed = LoraLearner(tiny, config)
    before = resume(resumed, nullcontext(tmp_path / "2"))
    assert before.step == 2
    loop = loop_of(resumed, config, len(examples))
    assert loop.run(batches_of(examples, config, before.step), before).losses == state.losses
    assert torch.equal(resumed.values, whole.values)
    assert state.losses[-1] < state.losses[0]
    assert (keeper.reports[-1].step, keeper.reports[-1].steps) == (6, 6)
    assert torch.equal(StaticLora.load(tmp_path / "6" / "adapter").values, whole.values)


def test_epochs_become_steps_and_long_examples_are_left_out(tiny: LanguageModel, passages: list[Passage]) -> None:
    examples = [passage_example(tiny, passage) for passage in passages]
    config = settings(tiny, max_examples=6, max_tokens=70, optimizer={"epochs": 2.0})
    kept = usable(tiny, [*examples, Example(tuple(range(3, 90)))], config)
    assert len(kept) == 6
    assert usable(tiny, examples, config) == usable(tiny, examples, config)
    long = [Example(tuple(range(3, 90)))] * 10
    assert usable(tiny, [*long, *examples[:6], *long], config) == examples[:6], "others stand in for what does not fit"
    looked_at: list[int] = []

    def make(number: int) -> Example:
        looked_at.append(number)
        return examples[number % len(examples)]

    assert len(usable(tiny, Examples(range(1000), make), config)) == len(looked_at) == 6, "only those that are drawn"
    assert config.optimizer.with_steps(len(kept)).steps == 3
    with refused(TrainingError, "no_example_fits", examples=1, max_tokens=70):
        usable(tiny, [Example(tuple(range(3, 90)))], config)


def test_a_loss_that_is_not_finite_ends_the_run_with_one_sentence(
    tiny: LanguageModel, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowTrainer, "step", lambda *_: (torch.tensor([math.nan]), torch.tensor([False])))
    config, examples = settings(tiny, optimizer={"max_bad_steps": 3}), [passage_example(tiny, passages[0])]
    with refused(TrainingError, "not_finite", step=3, times=3):
        loop_of(LoraLearner(tiny, config), config, 1).run(batches_of(examples, config))


def test_an_adapter_is_saved_as_peft_reads_it_and_damage_is_found(
    tiny: LanguageModel, tiny_path: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    values = 0.1 * torch.randn(tiny.subspace.size, generator=torch.Generator().manual_seed(3))
    lora = StaticLora(tiny.config, tiny.identity(), tiny.subspace, values, {"objective": "passages"})
    lora.save(tmp_path / "a")
    loaded = StaticLora.load(tmp_path / "a")
    assert torch.equal(loaded.values, values)
    assert loaded.notes == {"objective": "passages"}
    ids = torch.randint(3, 900, (1, 9))
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_path), str(tmp_path / "a")).eval()
    with torch.no_grad(), tiny.lora.applied(values):
        torch.testing.assert_close(tiny.model(input_ids=ids).logits, peft(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    weights = tmp_path / "a" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(bytes(data))
    with refused(MethodError, "adapter_damaged"):
        StaticLora.load(tmp_path / "a")
    with refused(MethodError, "adapter_not_found"):
        StaticLora.load(tmp_path / "b")
    card = tmp_path / "a" / "adapter.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "format": 0}))
    with refused(MethodError, "adapter_other_format", found=0, expected=1) as info:
        StaticLora.load(tmp_path / "a")
    assert "make it again with `regrad finetune`" in str(info.value)
