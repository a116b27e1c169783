"""Training LoRAs as rows: each as if alone, and against torch's own AdamW on one merged model."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regrad.data.augmented import Augmented, Pair
from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import BankError, MethodError, TrainingError
from regrad.lab.world import World
from regrad.methods.tta import Adapted, TtaConfig, TtaragConfig, adapt_online
from regrad.models.batching import sequence_losses
from regrad.models.loading import LanguageModel
from regrad.models.subspace import save_adapter
from regrad.settings import parse_settings
from regrad.training.callbacks import Silent, StepReport
from regrad.training.checkpoint import TrainCheckpoint
from regrad.training.loop import loop_of, resume
from regrad.training.lora.batched import AdapterTrainer, RowTrainer, train_rows
from regrad.training.lora.config import AdamWConfig, AdapterConfig, FinetuneConfig
from regrad.training.lora.examples import (
    Example,
    Examples,
    adapter_examples,
    instruction_example,
    passage_example,
    question_example,
    suffix_example,
)
from regrad.training.lora.finetuning import (
    LoraLearner,
    usable,
)
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.sampler import batches_of
from tests.tools.augmenting import augmented
from tests.tools.chats import chat, without_end_token
from tests.tools.refusals import refused

WHO = Question("", "Who?", ("me",))
FAST = AdamWConfig(lr=1e-2, weight_decay=0.1, clip=0.5)


def start(lm: LanguageModel, rows: int) -> Tensor:
    return lm.subspace.initial(0).to(next(lm.model.parameters()).dtype).expand(rows, -1)


def by_hand(lm: LanguageModel, examples: list[Example], config: AdamWConfig, steps: int) -> Tensor:
    """The same training with autograd through the whole loss and torch's AdamW on one parameter."""
    from regrad.training.lora.examples import example_batch

    phi = start(lm, 1)[0].clone().requires_grad_()
    optimizer = torch.optim.AdamW([phi], lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    for _ in range(steps):
        with lm.lora.applied(phi):
            loss = sequence_losses(lm, example_batch(lm, examples)).mean()
        optimizer.zero_grad()
        loss.backward()
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_([phi], config.clip)
        optimizer.step()
    return phi.detach()


def test_a_row_is_trained_as_torch_trains_one_parameter(tiny64: LanguageModel, passages: list[Passage]) -> None:
    examples = [passage_example(tiny64, passage) for passage in passages[:3]]
    found = train_rows(tiny64, start(tiny64, 1), [[examples] * 4], FAST)
    expected = by_hand(tiny64, examples, FAST, 4)
    assert (expected - start(tiny64, 1)[0]).norm() > 0.1
    torch.testing.assert_close(found.values[0], expected, rtol=1e-6, atol=1e-8)


def test_rows_of_different_lengths_and_step_counts_are_each_as_if_alone(
    tiny64: LanguageModel, passages: list[Passage]
) -> None:
    examples = [passage_example(tiny64, passage) for passage in passages[:6]]
    plans = [[[examples[0]], [examples[1]], [examples[2]]], [[examples[3], examples[4]]], [], [[examples[5]]] * 5]
    together = train_rows(tiny64, start(tiny64, 4), plans, replace_tokens(FAST, 150))
    for row, plan in enumerate(plans):
        alone = train_rows(tiny64, start(tiny64, 1), [plan], FAST)
        torch.testing.assert_close(together.values[row], alone.values[0], rtol=1e-6, atol=1e-8)
    assert torch.equal(together.values[2], start(tiny64, 1)[0]), "a row without examples does not move"
    assert math.isnan(together.losses[2])
    assert not any(together.failed)


def replace_tokens(config: AdamWConfig, tokens: int) -> AdamWConfig:
    return config.model_copy(update={"batch_tokens": tokens})


def test_a_row_that_is_not_finite_stays_and_does_not_touch_the_others(
    tiny: LanguageModel, passages: list[Passage]
) -> None:
    examples = [[passage_example(tiny, passage)] for passage in passages[:2]]
    broken = start(tiny, 2).clone()
    broken[1] = torch.nan
    found = train_rows(tiny, broken, [[examples[0]] * 2, [examples[1]] * 2], FAST)
    assert found.failed == [False, True]
    alone = train_rows(tiny, start(tiny, 1), [[examples[0]] * 2], FAST)
    torch.testing.assert_close(found.values[0], alone.values[0], rtol=1e-4, atol=1e-5)


def test_prag_has_five_sequences_a_passage_and_predicts_all_of_them(tiny: LanguageModel, world: World) -> None:
    item = augmented(world, 1)[0]
    examples = adapter_examples(tiny, item, AdapterConfig())
    texts = [tiny.tokenizer.decode(example.ids) for example in examples]
    assert len(examples) == 5
    assert {example.start for example in examples} == {1}
    shown = [("Passage:" in text, item.pairs[i // 2].question in text) for i, text in enumerate(texts)]
    assert shown == [(True, True)] * 4 + [(False, True)]
    assert item.rewrites[0].split(".")[0] in texts[1]
    assert item.passage.text.split(".")[0] in texts[0]
    assert len(adapter_examples(tiny, item, AdapterConfig(pairs=1))) == 2


def test_prag_is_trained_on_reasoning_with_the_demonstrations_of_asking(tiny: LanguageModel, world: World) -> None:
    item = augmented(world, 1)[0]
    pairs = (replace(item.pairs[0], full_answer="As is said, so it is."), item.pairs[1])
    item = replace(item, pairs=pairs)
    shown = [Question("d", "Which is solved?", ("This one, as one sees.",))]
    lm = chat(tiny, answer_start="Answer:")
    config = AdapterConfig(answers="full")
    asked = Question("q", pairs[0].question, ("?",))
    prompt = lm.config.prompts.prompt_for(asked, [item.passage], demonstrations=shown)
    assert "Which is solved?" in prompt and "This one, as one sees." in prompt
    answer = lm.encode(lm.config.prompts.answer_text("As is said, so it is."))
    found = adapter_examples(lm, item, config, shown)
    assert len(found) == 2, "the question without a full answer is left out"
    assert found[0] == Example((*lm.encode_prompt(prompt), *answer, *lm.eos))
    trainer = AdapterTrainer(lm, config, demonstrations=shown)
    without = replace(item, pairs=pairs[1:])
    (adapter, none), (plain, _) = trainer.train([item, without]), AdapterTrainer(lm, config).train([item, without])
    assert none.problem == "no question has a full answer"
    assert adapter.values is not None and plain.values is not None
    assert not torch.allclose(adapter.values, plain.values)


def test_a_question_leaves_out_the_worst_passages_until_it_fits(tiny: LanguageModel, passages: list[Passage]) -> None:
    whole = question_example(tiny, WHO, passages[:2])
    shorter = question_example(tiny, WHO, passages[:2], max_tokens=len(whole.ids) - 1)
    assert tiny.tokenizer.decode(whole.ids[whole.start :]).startswith(" me")
    text = tiny.tokenizer.decode(shorter.ids)
    assert passages[0].title in text
    assert passages[1].title not in text


@pytest.mark.parametrize("start", ["", "Answer:"])
def test_a_baseline_is_trained_on_the_prompt_that_a_chat_model_is_asked(
    tiny: LanguageModel, passages: list[Passage], start: str
) -> None:
    lm = chat(tiny, system="Be brief.", answer_start=start)
    answer = (*lm.encode(lm.config.prompts.reply("me")), *lm.eos)
    for shown in ([], passages[:1]):
        example = question_example(lm, WHO, shown)
        assert list(example.ids[: example.start]) == lm.encode_prompt(lm.config.prompts.prompt("Who?", shown))
        assert example.ids[example.start :] == answer
    assert lm.tokenizer.decode(example.ids).count("assistant") == 1


def test_in_a_chat_the_template_counts_to_what_must_fit(tiny: LanguageModel, passages: list[Passage]) -> None:
    plain, lm = question_example(tiny, WHO, passages[:2]), chat(tiny, system="Be brief.")
    asked = question_example(lm, WHO, passages[:2], max_tokens=len(plain.ids))
    text = lm.tokenizer.decode(asked.ids)
    assert len(asked.ids) <= len(plain.ids)
    assert (passages[0].title in text, passages[1].title in text) == (True, False)


def test_prag_predicts_the_chat_template_too(tiny: LanguageModel, world: World) -> None:
    lm, item = chat(tiny), augmented(world, 1)[0]
    examples = adapter_examples(lm, item, AdapterConfig())
    texts = [item.passage, Passage(item.passage.id, item.passage.title, item.rewrites[0])]
    shown = [[text] for _ in item.pairs[:2] for text in texts] + [[]]
    for example, pair, passages in zip(examples, [item.pairs[i // 2] for i in range(5)], shown, strict=True):
        prompt = lm.encode_prompt(lm.config.prompts.prompt(pair.question, passages))
        assert list(example.ids) == [*prompt, *lm.encode(lm.config.prompts.reply(pair.answer)), *lm.eos]
        assert example.start == 1


def test_without_a_chat_template_the_tokens_are_those_of_the_text_alone(
    tiny: LanguageModel, passages: list[Passage], world: World
) -> None:
    """Spelled out: prompt and answer between the start and the end token, as before there were chats."""
    prompts, item = tiny.config.prompts, augmented(world, 1)[0]
    for shown in ([], passages[:2]):
        prompt = [*tiny.bos, *tiny.encode(prompts.prompt("Who?", prompts.ordered(shown)))]
        whole = (*prompt, *tiny.encode(prompts.answer_text("me")), *tiny.eos)
        assert question_example(tiny, WHO, shown) == Example(whole, len(prompt))
    pair = item.pairs[2]
    alone = [*tiny.bos, *tiny.encode(prompts.prompt(pair.question)), *tiny.encode(prompts.answer_text(pair.answer))]
    assert adapter_examples(tiny, item, AdapterConfig())[-1] == Example((*alone, *tiny.eos))


def test_without_an_end_token_all_that_is_learned_from_is_one_token_shorter(
    tiny: LanguageModel, world: World, passages: list[Passage]
) -> None:
    """Passages (and so atoms), answers, and the sequences of PRAG and of instruction pre-training."""
    bare, item = without_end_token(tiny), augmented(world, 1)[0]

    def examples(lm: LanguageModel) -> list[Example]:
        read = [passage_example(lm, passages[0]), instruction_example(lm, item), question_example(lm, WHO)]
        return [*read, *adapter_examples(lm, item, AdapterConfig())]

    for ended, open_ in zip(examples(tiny), examples(bare), strict=True):
        assert ended == replace(open_, ids=(*open_.ids, *tiny.eos))


def test_text_to_read_is_no_chat(tiny: LanguageModel, world: World, passages: list[Passage]) -> None:
    lm, item = chat(tiny), augmented(world, 1)[0]
    assert passage_example(lm, passages[0]) == passage_example(tiny, passages[0])
    assert instruction_example(lm, item) == instruction_example(tiny, item)


def test_a_passages_adapter_does_not_depend_on_those_that_are_trained_beside_it(
    tiny: LanguageModel, world: World
) -> None:
    config = AdapterConfig(lr=1e-2, epochs=2)
    lm, items = tiny, augmented(world, 5)
    items[2] = replace(items[2], pairs=items[2].pairs[:1])
    together = AdapterTrainer(lm, config, rows=3).train(items)
    for item, adapter in zip(items, together, strict=True):
        alone = AdapterTrainer(lm, config).train([item])[0]
        assert adapter.values is not None and alone.values is not None
        torch.testing.assert_close(adapter.values, alone.values, rtol=1e-3, atol=1e-4)
        assert adapter.values.numel() == 2 * sum(i + o for _, i, o in lm.subspace.modules)


def test_adapters_can_be_trained_from_another_adapter(tiny: LanguageModel, world: World, tmp_path: Path) -> None:
    config = AdapterConfig(lr=1e-9)
    lm, items = tiny, augmented(world, 2)
    subspace = AdapterTrainer(lm, config).subspace
    start_P = torch.randn(subspace.size, generator=torch.Generator().manual_seed(7)) * 0.1
    folder = tmp_path / "base_weight"
    folder.mkdir()
    save_adapter(folder, "base", subspace, start_P)
    trainer = AdapterTrainer(lm, config, start_from=str(folder))
    for adapter in trainer.train(items):
        assert adapter.values is not None
        torch.testing.assert_close(adapter.values, start_P, rtol=1e-4, atol=1e-6)
    assert trainer.start_digest != AdapterTrainer(lm, config).start_digest
    other = AdapterConfig(rank=3)
    with refused(BankError, "other_adapter", differs="rank or scaling"):
        AdapterTrainer(tiny, other, start_from=str(folder))
    with refused(BankError, "no_adapters", uri=str(tmp_path)):
        AdapterTrainer(lm, config, start_from=str(tmp_path))


def test_an_adapter_is_trained_at_its_own_scale_on_top_of_a_static_one(tiny: LanguageModel, world: World) -> None:
    """Its loss falls when both are applied, and the static one alone is what it started from."""
    from regrad.training.lora.examples import example_batch
    from regrad.training.lora.lora_artifact import join

    config = AdapterConfig(lr=5e-3, epochs=4)
    values = 0.3 * torch.randn(tiny.subspace.size, generator=torch.Generator().manual_seed(3))
    static = StaticLora(tiny.config, tiny.identity(), tiny.subspace, values)
    lm, items = tiny, augmented(world, 1)
    trainer = AdapterTrainer(lm, config, static)
    adapter = trainer.train(items)[0].values
    assert adapter is not None
    batch = example_batch(lm, adapter_examples(lm, items[0], AdapterConfig()))

    def loss(*parts: tuple[Any, Tensor]) -> float:
        with torch.no_grad(), lm.applied(join(parts)):
            return float(sequence_losses(lm, batch).mean())

    both = loss((static.subspace, values), (trainer.subspace, adapter))
    assert both < loss((static.subspace, values)) - 0.1
    assert both < loss((trainer.subspace, adapter))


def test_a_passage_without_questions_has_no_adapter_and_stops_nothing(tiny: LanguageModel, world: World) -> None:
    config = AdapterConfig(max_tokens=120)
    lm, items = tiny, augmented(world, 3)
    items[0] = replace(items[0], pairs=())
    long = Passage("long", "Long", "word " * 200)
    items[1] = Augmented(long, (), (Pair("Who?", "me"),))
    found = AdapterTrainer(lm, config).train(items)
    assert [adapter.problem for adapter in found] == ["no question-answer pairs", "every sequence is too long", ""]
    assert found[2].values is not None


def adapted(
    lm: LanguageModel, phi0: Tensor, questions: list[list[Passage]], steps: int = 3, **changes: Any
) -> list[Adapted]:
    config = TtaConfig(name="tta", steps=steps, lr=1e-2, weight_decay=0.1, clip=0.5, **changes)
    return adapt_online(lm, lm.subspace, phi0, questions, config)


def test_online_adaptation_forgets_everything_between_questions(tiny: LanguageModel, passages: list[Passage]) -> None:
    """The bug of a published implementation: its reset was to tensors that had been trained meanwhile."""
    phi0, identity = start(tiny, 1)[0], tiny.identity()
    first = adapted(tiny, phi0, [passages[:2]])[0].update
    for questions in ([passages[2:5]], [passages[5:8], passages[:1]]):
        adapted(tiny, phi0, questions)
    again = adapted(tiny, phi0, [passages[:2]])[0].update
    beside = adapted(tiny, phi0, [passages[4:7], passages[:2]])[1].update
    assert first is not None and again is not None and beside is not None
    assert torch.equal(first, again)
    torch.testing.assert_close(first, beside, rtol=1e-3, atol=1e-4)
    assert (first - phi0).norm() > 0.1
    assert torch.equal(phi0, start(tiny, 1)[0])
    assert tiny.identity() == identity


@pytest.mark.parametrize("adapt_on", ["passages", "suffixes"])
def test_more_steps_lower_the_loss_of_the_passages(tiny: LanguageModel, passages: list[Passage], adapt_on: str) -> None:
    from regrad.training.lora.examples import example_batch

    batch = example_batch(tiny, [passage_example(tiny, passage) for passage in passages[:2]])
    losses = []
    for steps in (1, 6):
        update = adapted(tiny, start(tiny, 1)[0], [passages[:2]], steps, adapt_on=adapt_on)[0].update
        assert update is not None
        with torch.no_grad(), tiny.lora.applied(update):
            losses.append(float(sequence_losses(tiny, batch).mean()))
    assert losses[1] < losses[0]


def test_a_question_whose_passages_do_not_fit_is_answered_by_the_base_and_says_so(
    tiny: LanguageModel, passages: list[Passage]
) -> None:
    long = Passage("long", "Long", "word " * 400)
    found = adapted(tiny, start(tiny, 1)[0], [[long], [long, passages[0]], []], 1)
    assert [item.update is None for item in found] == [True, False, True]
    assert found[1].note == "1 passages do not fit the model"
    cut = adapted(tiny, start(tiny, 1)[0], [[long]], 1, max_tokens=50)[0]
    assert cut.update is not None and not cut.note


def test_ttarag_takes_its_first_three_pairs_in_two_steps_as_its_code_does(
    tiny64: LanguageModel, passages: list[Passage]
) -> None:
    """Written out: the sum of two losses over six, clipped; then the third over six. The second question has two."""
    from regrad.training.lora.examples import example_batch

    config = TtaragConfig(name="ttarag", lr=1e-2)
    questions = [passages[:5], passages[5:7]]
    found = adapt_online(tiny64, tiny64.subspace, start(tiny64, 1)[0], questions, config)
    for item, given in zip(found, questions, strict=True):
        examples = [suffix_example(tiny64, passage) for passage in given[:3]]
        phi = start(tiny64, 1)[0].clone().requires_grad_()
        optimizer = torch.optim.AdamW([phi], lr=1e-2, weight_decay=0.01)
        for some in (examples[:2], examples[2:]):
            if some:
                optimizer.zero_grad()
                with tiny64.lora.applied(phi):
                    loss = sequence_losses(tiny64, example_batch(tiny64, some)).sum() / (len(examples) * 2)
                loss.backward()
                torch.nn.utils.clip_grad_norm_([phi], 0.1)
                optimizer.step()
        assert item.update is not None
        torch.testing.assert_close(item.update, phi.detach().float(), rtol=1e-5, atol=1e-7)


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
