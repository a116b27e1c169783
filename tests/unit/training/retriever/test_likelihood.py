"""The likelihood of an answer with one passage, in the prompt and under its gradient, on the lab's model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import PromptTooLong, TrainingError
from regrad.lab.sets import Many
from regrad.lab.world import World
from regrad.meta_init import random_meta_init
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.methods.regrad import BoundMetaInit, ReGradOnlineConfig
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.settings import builtin_config, load_settings
from regrad.training.retriever.likelihood import Asked, MethodLikelihood
from tests.tools.refusals import refused

PEOPLE = 3


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Question, Passage]]:
    """Each question with its own note, and then each with the note of the next one."""
    import random

    world, rng = World(), random.Random(0)
    lab = Many(world)
    asked, notes = [], []
    for person in world.meta[:PEOPLE]:
        attribute = "employer"
        item = lab.ask(person, attribute, rng)
        asked.append(Question("", item.question, item.answers))
        notes += [note for note in lab.passages(person, rng) if note.id == item.passage_ids[0]]
    return [*zip(asked, notes, strict=True), *zip(asked, [*notes[1:], notes[0]], strict=True)]


def alone(pairs: list[tuple[Question, Passage]]) -> list[Asked]:
    """Each question with its one passage."""
    return [(question, (passage,)) for question, passage in pairs]


def test_an_answer_is_likelier_with_the_passage_that_holds_it_in_the_prompt(
    lm: LanguageModel, pairs: list[tuple[Question, Passage]]
) -> None:
    found = MethodLikelihood(lm, PromptOnlyConfig(name="rag"), False, 4096).of(alone(pairs))
    assert (found[:PEOPLE] > found[PEOPLE:] + 1).all()


def test_the_likelihood_of_the_sequence_is_the_token_mean_times_the_tokens_whatever_the_batches(
    lm: LanguageModel, pairs: list[tuple[Question, Passage]]
) -> None:
    whole = MethodLikelihood(lm, PromptOnlyConfig(name="rag"), False, 4096).of(alone(pairs))
    mean = MethodLikelihood(lm, PromptOnlyConfig(name="rag"), True, 1).of(alone(pairs))
    prompts = lm.config.prompts
    tokens = [len(lm.encode(prompts.reply(q.answers[0]))) + len(lm.ending) for q, _ in pairs]
    torch.testing.assert_close(whole, mean * torch.tensor(tokens), atol=1e-4, rtol=1e-4)


def test_under_the_gradient_it_is_what_the_executor_says_of_the_same_update(
    lm: LanguageModel, pairs: list[tuple[Question, Passage]], tmp_path: Path
) -> None:
    meta_init = random_meta_init(lm, 1.0)
    meta_init.save(tmp_path / "start")
    settings = ReGradOnlineConfig(name="regrad-online", meta_init=str(tmp_path / "start"), gamma=0.5)
    found = MethodLikelihood(lm, settings, False, 4096).of(alone(pairs))
    bound = BoundMetaInit(lm, meta_init)
    for (question, passage), likelihood in zip(pairs, found.tolist(), strict=True):
        (item,) = bound.compute([passage])
        assert item.atom is not None
        update = bound.update(item.atom, 0.5).vector
        prompt = lm.config.prompts.prompt(question.question)
        single = _log_likelihood(lm, prompt, question.answers[0], update)
        assert likelihood == pytest.approx(single, abs=1e-3)


def test_under_a_gradient_that_acts_on_the_answer_the_base_reads_the_prompt(
    lm: LanguageModel, pairs: list[tuple[Question, Passage]], tmp_path: Path
) -> None:
    """Beside a question whose passage has no gradient, which the base answers alone."""
    meta_init = replace(random_meta_init(lm, 2.0), acts_on="answer")
    meta_init.save(tmp_path / "start")
    settings = ReGradOnlineConfig(name="regrad-online", meta_init=str(tmp_path / "start"), gamma=0.5)
    asked = [*pairs[:2], (pairs[2][0], Passage("empty", "", ""))]
    found = MethodLikelihood(lm, settings, False, 4096).of(alone(asked)).tolist()
    bound = BoundMetaInit(lm, meta_init)
    for (question, passage), likelihood in zip(asked[:2], found[:2], strict=True):
        (item,) = bound.compute([passage])
        assert item.atom is not None
        prompt, answer = lm.config.prompts.prompt(question.question), question.answers[0]
        update_P = bound.update(item.atom, 0.5).vector
        whole, single = (_log_likelihood(lm, prompt, answer, update_P, acts) for acts in ("everything", "answer"))
        assert likelihood == pytest.approx(single, abs=1e-4)
        assert abs(single - whole) > 1e-3
    prompt, answer = lm.config.prompts.prompt(asked[2][0].question), asked[2][0].answers[0]
    assert found[2] == pytest.approx(_log_likelihood(lm, prompt, answer, lm.subspace.initial(0)), abs=1e-3)


def _log_likelihood(
    lm: LanguageModel, prompt: str, answer: str, update: torch.Tensor, acts_on: str = "everything"
) -> float:
    """Token by token, from the model's own logits."""
    start = lm.encode_prompt(prompt)
    answered = [*lm.encode(lm.config.prompts.reply(answer)), *lm.ending]
    ids = torch.tensor([[*start, *answered]])
    acting = torch.arange(ids.shape[1] - 1)[None] >= (len(start) - 1 if acts_on == "answer" else 0)
    with torch.no_grad(), lm.lora.applied(update, acting):
        logits = lm.logits(lm.hidden(ids[:, :-1])).log_softmax(-1)[0]
    return float(sum(logits[len(start) - 1 + i, token] for i, token in enumerate(answered)))


def test_a_passage_that_does_not_fit_is_left_out_of_the_prompt(
    lm: LanguageModel, pairs: list[tuple[Question, Passage]]
) -> None:
    question, passage = pairs[0]
    assert lm.context_length is not None
    long = Passage("long", passage.title, " ".join([passage.text] * (lm.context_length // 20)))
    with_long = MethodLikelihood(lm, PromptOnlyConfig(name="rag"), False, 4096).of([(question, (long,))])
    prompt = lm.config.prompts.prompt(question.question)
    single = _log_likelihood(lm, prompt, question.answers[0], lm.subspace.initial(0))
    assert float(with_long[0]) == pytest.approx(single, abs=1e-3)


def test_a_likelihood_that_is_not_finite_names_question_and_passage(
    lm: LanguageModel, pairs: list[tuple[Question, Passage]], tmp_path: Path
) -> None:
    random_meta_init(lm, 1e38).save(tmp_path / "start")
    settings = ReGradOnlineConfig(name="regrad-online", meta_init=str(tmp_path / "start"), gamma=1e6)
    question, passage = pairs[0]
    with refused(TrainingError, "likelihood_not_finite", question=question.question, passage_id=passage.id):
        MethodLikelihood(lm, settings, False, 4096).of(alone(pairs[:1]))


def test_a_question_that_does_not_fit_is_named(lm: LanguageModel, pairs: list[tuple[Question, Passage]]) -> None:
    question, passage = pairs[0]
    long = replace(question, question="word " * 2000)
    with refused(PromptTooLong, "", question=long.question) as caught:
        MethodLikelihood(lm, PromptOnlyConfig(name="rag"), False, 4096).of([(long, (passage,))])
    assert "leave it out" in str(caught.value)
