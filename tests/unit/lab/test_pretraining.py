"""Pre-training of the lab's base: the same seed gives the same model, and what it sees is what questions look like."""

from __future__ import annotations

import random

import pytest

from regrad.lab.config import LabPretrainConfig
from regrad.lab.contexts import ANSWER, CURRICULUM, ContextSampler
from regrad.lab.pretraining import Pretrainer, Progress
from regrad.lab.wording import LAB_PROMPTS
from regrad.lab.world import World
from regrad.models.loading import LanguageModel, weights_digest

SMALL = LabPretrainConfig(
    hidden=32, layers=3, heads=2, ffn=48, steps=3, tokens_per_step=500, memory_questions=4, documents=2
)


def train(world: World, lm: LanguageModel, config: LabPretrainConfig) -> tuple[str, list[Progress]]:
    seen: list[Progress] = []
    model = Pretrainer(config, world, lm.tokenizer).run(seen.append)  # type: ignore[arg-type]
    return weights_digest(model), seen


def test_the_same_seed_is_the_same_model(world: World, lab_model: LanguageModel) -> None:
    first, seen = train(world, lab_model, SMALL)
    assert seen[-1].step == 3
    assert train(world, lab_model, SMALL)[0] == first
    assert train(world, lab_model, SMALL.model_copy(update={"seed": 3}))[0] != first


def test_contexts_are_the_prompts_that_the_server_makes(world: World, lab_model: LanguageModel) -> None:
    """Token for token: the decoded context, encoded again as text, is what the prompt format writes."""
    sampler = ContextSampler(world, lab_model.tokenizer, random.Random(1))
    for _ in range(20):
        sequence = sampler.context(CURRICULUM[3], questions=1)
        ids, end = sequence.ids, sequence.kinds.index(ANSWER)
        text = lab_model.tokenizer.decode(ids[1:end])
        assert lab_model.encode(text) == ids[1:end]
        assert text.startswith("Passage: ")
        assert text.endswith("\nAnswer:")
        question = text.rsplit("Question: ", 1)[1].removesuffix("\nAnswer:")
        assert text.endswith(LAB_PROMPTS.prompt(question))
        assert lab_model.tokenizer.decode(ids[end : end + 1]).strip() in world.values


@pytest.mark.slow
def test_pretraining_sees_only_its_own_people(world: World, lab_model: LanguageModel) -> None:
    sampler = ContextSampler(world, lab_model.tokenizer, random.Random(2))
    allowed = {person.name for person in [*world.reading, *world.memorised]}
    for _ in range(50):
        for sequence in (sampler.context(CURRICULUM[3], 1), sampler.document(), sampler.memory_question()):
            text = lab_model.tokenizer.decode(sequence.ids)
            assert any(name in text for name in allowed)
            assert not [person.name for person in world.held_out if person.name in text]
