"""The generator that is trained with the retriever: gradients against differences, and what is made of it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regrad.data.questions import Question
from regrad.lab.config import LabEncoderConfig
from regrad.lab.encoder import write_encoder
from regrad.lab.sets import Many
from regrad.lab.world import World
from regrad.meta_init import MetaInit, random_meta_init
from regrad.methods.base import Evidence
from regrad.methods.static_lora import StaticLoraConfig
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.retrieval.config import DenseConfig, EncoderConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.settings import builtin_config, load_settings
from regrad.training.checkpoint import TrainState
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.generator import LoraGenerator, StartGenerator, make_generator
from regrad.training.retriever.learner import NumberedQuestion, RetrieverLearner, open_dense
from regrad.training.retriever.likelihood import Asked
from tests.tools.refusals import refused_settings

PEOPLE = 3


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    """Each question with its own note."""
    world, rng = World(), random.Random(0)
    lab, found = Many(world), []
    for person in world.meta[:PEOPLE]:
        item = lab.ask(person, "employer", rng)
        note = next(note for note in lab.passages(person, rng) if note.id == item.passage_ids[0])
        found.append((Question("", item.question, item.answers), (note,)))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel, asked: list[Asked]) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    write_encoder(LabEncoderConfig(output=f"{folder}/encoder", dimensions=32))
    settings = EncoderConfig(path=f"{folder}/encoder")
    notes = [passages[0] for _, passages in asked]
    build_dense_index(notes, f"{folder}/index", Encoder(settings, "cpu"), DenseConfig(encoder=settings, vectors="flat"))
    random_meta_init(lm, 1.0).save(folder / "start")
    return folder


def settings(place: Path, *extra: str) -> RetrieverTrainConfig:
    values = [f"index={place}/index", f"output={place}/trained", "others=[]", "k=3", "questions.path=unread.jsonl"]
    values += [f"generator={{output: {place}/generator, lr: 0.01}}", "objective={kind: marginal}"]
    return load_settings(RetrieverTrainConfig, builtin_config("jobs/retriever-lab.yaml"), [*values, *extra])


def under_gradient(place: Path) -> str:
    return f"method={{name: regrad-online, meta_init: {place}/start, gamma: 0.5}}"


def moved(generator: LoraGenerator | StartGenerator, by_P: Tensor) -> None:
    generator.module.values.data += by_P
    generator.moved()


@pytest.mark.parametrize("likelihood", ["sequence", "token-mean"])
def test_the_gradient_of_a_lora_is_that_of_its_likelihoods(
    place: Path, lm: LanguageModel, asked: list[Asked], likelihood: str
) -> None:
    generator = LoraGenerator(lm, settings(place, f"likelihood={likelihood}"))
    draws = torch.Generator().manual_seed(1)
    moved(generator, 0.02 * torch.randn(lm.subspace.size, generator=draws))
    weights = [1.0, -0.5, 2.0]
    found_P = generator.gradient(asked, weights)
    direction_P = found_P / found_P.norm()
    sums = []
    for step in (1e-2, -2e-2):
        moved(generator, step * direction_P)
        sums.append(float((generator.of(asked).double() * torch.tensor(weights).double()).sum()))
    assert (sums[0] - sums[1]) / 2e-2 == pytest.approx(float(found_P.norm()), rel=0.02)


@pytest.mark.slow
def test_the_gradient_of_phi0_is_that_of_answers_under_gradients_that_are_held(
    place: Path, lm: LanguageModel, asked: list[Asked]
) -> None:
    generator = StartGenerator(lm, settings(place, under_gradient(place)))
    weights = [1.0, -0.5, 2.0]
    found_P = generator.gradient(asked, weights)
    plans = generator.plans(asked)
    total_P = torch.zeros_like(found_P)
    for plan, (question, _), weight in zip(plans, asked, weights, strict=True):
        (batch,) = generator.reader.batches([plan], [question.answers[0]])
        leaf_P = plan.updates[0].vector.clone().requires_grad_()
        loss = generator.reader.losses(batch, {lm.subspace: leaf_P}, "sum")[0]
        total_P -= weight * torch.autograd.grad(loss, leaf_P)[0]
    torch.testing.assert_close(found_P, total_P, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_after_a_step_passages_have_their_gradients_at_the_new_phi0(
    place: Path, lm: LanguageModel, asked: list[Asked]
) -> None:
    generator = StartGenerator(lm, settings(place, under_gradient(place)))
    draws = torch.Generator().manual_seed(2)
    moved(generator, 0.05 * torch.randn(lm.subspace.size, generator=draws))
    generator.product({"steps": 1}).save(place / "moved")
    again = StartGenerator(lm, settings(place, under_gradient(place).replace("/start", "/moved")))
    torch.testing.assert_close(generator.of(asked), again.of(asked), rtol=1e-4, atol=1e-4)
    old = StartGenerator(lm, settings(place, under_gradient(place)))
    assert (generator.of(asked) - old.of(asked)).abs().max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["{kind: marginal}", "{kind: vrag}", "{kind: jsa}", "{kind: jsa, states: last}"])
def test_retriever_and_generator_learn_together_and_the_lora_answers_as_any_other(
    place: Path, tmp_path: Path, lm: LanguageModel, asked: list[Asked], objective: str
) -> None:
    config = settings(place, f"objective={objective}", f"output={tmp_path}/trained", "optimizer.lr=0.01")
    retriever = open_dense(config.index, config.k, "cpu")
    generator = make_generator(lm, config)
    # The lab's model reads the right answer already: the person's name it has to learn to give.
    asked = [(replace(question, answers=(notes[0].title,)), notes) for question, notes in asked]
    batch = [NumberedQuestion(number, question) for number, (question, _) in enumerate(asked)]
    before = generator.of(asked)
    learner = RetrieverLearner(config, retriever, generator, len(asked), torch.device("cpu"))
    for _ in range(4):
        assert learner.step(batch, 1.0).loss is not None
    assert (generator.of(asked) > before + 1).all()

    learner.product(TrainState(step=4)).save(tmp_path / "product")
    adapter = StaticLora.load(tmp_path / "product" / "generator")
    assert adapter.notes["steps"] == 4
    method = StaticLoraConfig(name="ft-rag", adapter=f"{tmp_path}/product/generator").open(lm)
    plans = method.plan([Evidence(question, passages) for question, passages in asked], method.open_atoms())
    answers = [question.answers[0] for question, _ in asked]
    torch.testing.assert_close(
        generator.reader.log_likelihoods(plans, answers), generator.of(asked), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_a_run_goes_on_with_the_generator_that_its_checkpoint_has(
    place: Path, lm: LanguageModel, asked: list[Asked]
) -> None:
    for extra in ([], [under_gradient(place)]):
        config = settings(place, *extra)
        batch = [NumberedQuestion(number, question) for number, (question, _) in enumerate(asked)]

        def learner(config: RetrieverTrainConfig = config) -> RetrieverLearner:
            retriever, generator = open_dense(config.index, config.k, "cpu"), make_generator(lm, config)
            return RetrieverLearner(config, retriever, generator, PEOPLE, torch.device("cpu"))

        first, second = learner(), learner()
        first.step(batch, 1.0)
        second.load(first.tensors())
        second.prepare(batch, TrainState(step=1))
        assert first.step(batch, 1.0).loss == second.step(batch, 1.0).loss


def test_what_cannot_be_trained_together_is_refused(place: Path) -> None:
    with refused_settings("generator_of_method"):
        settings(place, f"method={{name: regrad, meta_init: {place}/start, bank: {place}/bank}}")
    with refused_settings("distill_trains_no_generator"):
        settings(place, "objective={kind: distill}")
    with refused_settings("start_from_twice"):
        settings(place, under_gradient(place), f"generator.start_from={place}/adapter")


def test_a_meta_init_keeps_its_step_sizes(place: Path, lm: LanguageModel) -> None:
    start = MetaInit.load(place / "start")
    generator = StartGenerator(lm, settings(place, under_gradient(place)))
    moved(generator, torch.ones(lm.subspace.size))
    generator.product({}).save(place / "other")
    made = MetaInit.load(place / "other")
    assert torch.equal(made.step_sizes, start.step_sizes) and made.fingerprint != start.fingerprint
    torch.testing.assert_close(made.phi0, start.phi0 + 1)
