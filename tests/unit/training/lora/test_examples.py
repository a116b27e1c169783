"""What LoRAs are trained on: PRAG's sequences, prompts of a baseline, chat templates, and what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.lab.world import World
from regrad.models.loading import LanguageModel
from regrad.training.lora.batched import AdapterTrainer
from regrad.training.lora.config import AdapterConfig
from regrad.training.lora.examples import (
    Example,
    adapter_examples,
    instruction_example,
    passage_example,
    question_example,
)
from tests.tools.augmenting import augmented
from tests.tools.chats import chat, without_end_token
from tests.unit.training.lora.test_batched import WHO


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
