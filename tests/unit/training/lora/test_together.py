"""`questions_together`: the questions of a task as one example, read in one row where the model allows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion
from regrad.lab.world import World
from regrad.models.batching import sequence_losses
from regrad.models.loading import LanguageModel
from regrad.settings import parse_settings
from regrad.training.loop import loop_of, resume
from regrad.training.lora import batched
from regrad.training.lora.batched import RowTrainer
from regrad.training.lora.config import AdamWConfig, FinetuneConfig
from regrad.training.lora.examples import Example, example_batch, passage_example, read_examples
from regrad.training.lora.finetuning import LoraLearner, finetune_in_process, usable
from regrad.training.sampler import batches_of
from tests.tools.adapting import adapter_bank
from tests.tools.refusals import refused_settings
from tests.unit.training.lora.test_finetuning import Keeper

Settings = Callable[..., FinetuneConfig]
ASKED = [
    ("Where was A born?", "Thomville"),
    ("Who employs A?", "Rasoft and more"),
    ("What?", "chess"),
    ("How?", "by bus"),
]


@pytest.fixture
def settings(tmp_path: Path, tiny: LanguageModel, passages: list[Passage]) -> Settings:
    """On three tasks of five questions: four on a passage, and one, in between, on another."""
    asked = [TaskQuestion(question, answer, (0,)) for question, answer in ASKED]
    asked.insert(2, TaskQuestion("And B?", "nothing", (1,)))
    records = [Task(tuple(passages[n : n + 2]), tuple(asked)).to_record() for n in (0, 2, 4)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(**changes: Any) -> FinetuneConfig:
        optimizer = {"steps": 3, "batch_size": 2, "lr": 1e-2, **changes.pop("optimizer", {})}
        values = {"model": tiny.config.model_dump(), "objective": "questions-with-passages", "output": "o"}
        values |= {"tasks": f"{tmp_path}/tasks.jsonl", "optimizer": optimizer, "checkpoints": {"every": 1}}
        return parse_settings(FinetuneConfig, {**values, **changes}, "test")

    return make


def counts(lm: LanguageModel, config: FinetuneConfig) -> list[int]:
    return [len(example.each) for example in read_examples(config, lm)]


def test_questions_on_the_same_passages_make_one_example_in_even_parts(tiny: LanguageModel, settings: Settings) -> None:
    alone = list(read_examples(settings(), tiny))
    assert [example.others for example in alone] == [()] * 15
    assert list(read_examples(settings(questions_together=1), tiny)) == alone, "in the order of the file, too"
    assert counts(tiny, settings(questions_together=4)) == [4, 1] * 3
    assert counts(tiny, settings(questions_together=3)) == [2, 2, 1] * 3
    assert counts(tiny, settings(questions_together=9)) == [4, 1] * 3
    together = list(read_examples(settings(questions_together=4), tiny))
    assert together[0].each == [alone[n] for n in (0, 1, 3, 4)]
    assert together[1].each == [alone[2]]


def test_an_example_of_which_a_question_does_not_fit_is_left_out(tiny: LanguageModel, settings: Settings) -> None:
    examples = list(read_examples(settings(questions_together=4), tiny))
    longest = max(len(ids) for ids, _ in examples[0].sequences)
    short = settings(questions_together=4, max_tokens=longest - 1)
    assert examples[0] in usable(tiny, examples, settings()) and examples[0] not in usable(tiny, examples, short)
    unpredicted = replace(examples[0], others=(*examples[0].others, Example((1, 2), 2)))
    assert usable(tiny, [unpredicted, examples[1]], settings()) == [examples[1]]


def gradient(lm: LanguageModel, examples: list[list[Example]], tokens: int = 8192) -> tuple[Tensor, Tensor]:
    """Losses [U] and the LoRAs [U, P] after a step, which plain gradient descent makes the gradients."""
    start = lm.subspace.initial(0).double() + 0.05
    config = batched.SgdConfig(lr=1.0, batch_tokens=tokens)
    trainer = RowTrainer(lm, start.expand(len(examples), -1), config)
    losses, updated = trainer.step(examples)
    assert updated.all()
    return losses, start - trainer.values


def test_a_step_is_that_of_separate_rows_and_of_the_mean_written_out(
    tiny64: LanguageModel, settings: Settings, passages: list[Passage]
) -> None:
    """Also beside examples of one question, in chunks of any size, and with several LoRAs at once."""
    examples = [*read_examples(settings(questions_together=4), tiny64), passage_example(tiny64, passages[7])]
    rows = [examples, examples[:2]]
    losses, gradients = gradient(tiny64, rows)
    for lm, tokens in ((replace(tiny64, packs=False), 8192), (tiny64, 150)):
        others = gradient(lm, rows, tokens)
        torch.testing.assert_close(others[0], losses, rtol=1e-6, atol=0)  # they are added up in float32
        torch.testing.assert_close(others[1], gradients, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(tiny64, [examples])[1], gradients[:1], rtol=1e-10, atol=1e-12)

    phi = (tiny64.subspace.initial(0).double() + 0.05).requires_grad_()
    with tiny64.lora.applied(phi):
        means = [
            torch.stack([sequence_losses(tiny64, example_batch(tiny64, [one]))[0] for one in example.each]).mean()
            for example in examples
        ]
    loss = torch.stack(means).mean()
    torch.testing.assert_close(losses[0], loss.detach(), rtol=1e-6, atol=0, check_dtype=False)
    expected = torch.autograd.grad(loss, phi)[0]
    torch.testing.assert_close(gradients[0], expected, rtol=1e-6, atol=1e-10)  # an example's weight is in float32


def test_the_common_beginning_is_read_once(
    tiny: LanguageModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = list(read_examples(settings(questions_together=4), tiny))[:1]
    read: list[tuple[int, ...]] = []
    original = batched.final_hidden
    monkeypatch.setattr(batched, "final_hidden", lambda lm, batch: read.append(batch.ids.shape) or original(lm, batch))
    RowTrainer(tiny, tiny.subspace.initial(0)[None], AdamWConfig()).step([examples])
    RowTrainer(replace(tiny, packs=False), tiny.subspace.initial(0)[None], AdamWConfig()).step([examples])
    (together, tokens), (separate, longest) = read
    assert (together, separate) == (1, 4) and tokens < 0.6 * separate * longest


def test_a_batch_sees_as_many_questions_as_it_has_tasks_times_questions(
    tiny: LanguageModel, settings: Settings
) -> None:
    config = settings(questions_together=4, k=1, optimizer={"steps": 6, "batch_size": 3})
    examples = usable(tiny, read_examples(config, tiny), config)
    assert [len(batch) for batch in batches_of(examples, config)] == [3] * 6
    assert sum(len(example.each) for batch in batches_of(examples, config) for example in batch) == 3 * 15
    result = LoraLearner(tiny, config).step(examples[:1], 1.0)
    assert result.counts == {"tokens": sum(len(one.ids) for one in examples[0].each)}


def test_one_question_an_example_is_the_same_run_bit_by_bit(settings: Settings) -> None:
    null, one = (finetune_in_process(settings(questions_together=number)) for number in (None, 1))
    assert torch.equal(null.values, one.values)
    assert null.notes["losses"] == one.notes["losses"]


def test_a_run_goes_on_from_a_checkpoint_and_its_card_says_how_questions_were_read(
    tiny: LanguageModel, settings: Settings, tmp_path: Path
) -> None:
    config = settings(questions_together=4)
    examples = usable(tiny, read_examples(config, tiny), config)
    whole = LoraLearner(tiny, config)
    loop_of(whole, config, len(examples), Keeper(tmp_path)).run(batches_of(examples, config))
    resumed = LoraLearner(tiny, config)
    before = resume(resumed, nullcontext(tmp_path / "2"))
    loop_of(resumed, config, len(examples)).run(batches_of(examples, config, before.step), before)
    assert torch.equal(resumed.values, whole.values)
    made = finetune_in_process(config)
    torch.testing.assert_close(made.values, whole.values, rtol=1e-5, atol=1e-6)
    assert (made.notes["examples"], made.notes["settings"]["questions_together"]) == (6, 4)


def test_adapters_are_in_force_for_all_questions_of_an_example(
    tiny: LanguageModel, world: World, tmp_path: Path, settings: Settings
) -> None:
    _, _, known = adapter_bank(tiny, world, str(tmp_path / "adapters"), layers="all")
    task = Task((known[0],), tuple(TaskQuestion(question, answer, (0,)) for question, answer in ASKED))
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task.to_record()) + "\n")
    place = {"adapters": f"{tmp_path}/adapters", "optimizer": {"batch_size": 1}}
    together = finetune_in_process(settings(questions_together=4, **place))
    alone = finetune_in_process(settings(adapters=place["adapters"], optimizer={"batch_size": 4}))
    torch.testing.assert_close(together.values, alone.values, rtol=1e-3, atol=1e-4)
    without = finetune_in_process(settings(questions_together=4, optimizer={"batch_size": 1}))
    assert not torch.allclose(together.values, without.values, rtol=1e-3, atol=1e-3)


def test_only_questions_can_be_taken_together(settings: Settings) -> None:
    with refused_settings("nothing_to_take_together"):
        settings(objective="passages", corpus="c", questions_together=4)
