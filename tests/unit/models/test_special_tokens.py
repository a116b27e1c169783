"""Tokens that end an answer, in each form in which checkpoints name them, and tokens beyond a model's vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regrad.data.augmented import Augmented, Pair
from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion
from regrad.errors import CorpusError, ModelError, TokenOutOfVocabulary
from regrad.gradients.extractor import AtomExtractor
from regrad.inference.decoding import GenerationRequest, draws, generate, sample
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.meta_init import random_meta_init
from regrad.methods.tta import TtaConfig, adapt_online
from regrad.models.loading import LanguageModel
from regrad.training.lora.batched import AdapterTrainer
from regrad.training.lora.config import AdapterConfig
from regrad.training.meta.config import ShapeConfig
from regrad.training.meta.task_plan import Lengths
from tests.tools.decoded import run
from tests.tools.refusals import refused
from tests.unit.models.test_checkpoint import edit_json, load
from tests.unit.models.test_checkpoint import folder as folder


def test_all_end_tokens_of_generation_config_end_an_answer(tiny: LanguageModel, folder: Path) -> None:
    prompt = "Question: In which city was Les Dripen born?\nAnswer:"
    draws_11 = draws("one", 1, 12)
    written = generate(tiny, [GenerationRequest(prompt, max_new_tokens=12)])[0]
    first = tiny.model.generate(  # type: ignore[operator]
        torch.tensor([tiny.encode_prompt(prompt)]), max_new_tokens=1, do_sample=False
    )[0, -1].item()
    assert written.text and first not in tiny.end_ids
    edit_json(folder / "generation_config.json", eos_token_id=[*tiny.eos, first])
    lm = load(tiny, folder)
    assert lm.end_ids == (*tiny.eos, first) and lm.eos == tiny.eos
    assert generate(lm, [GenerationRequest(prompt, max_new_tokens=12)])[0].text == ""
    assert [heard.text for heard in run(Engine(lm), [DecodingRequest(prompt, (), 12)])] == [""]
    drawn = sample(lm, [lm.encode_prompt(prompt)], draws_11, 1e-6, 1.0, lambda text: False)[0]
    assert (drawn.text, drawn.complete) == ("", True)


@pytest.fixture
def extended(tiny: LanguageModel, folder: Path) -> LanguageModel:
    """The tiny model with a token in its tokenizer that it has no embedding for."""
    lm = load(tiny, folder)
    lm.tokenizer.add_tokens(["Zorblax"])
    lm.tokenizer.save_pretrained(str(folder))
    return load(tiny, folder)


def test_a_token_beyond_the_vocabulary_concerns_its_own_text_only(extended: LanguageModel) -> None:
    with refused(TokenOutOfVocabulary, token="Zorblax", vocabulary=2236):
        extended.encode("What is a Zorblax?")
    good = ["In which city was Les Dripen born?", "Where?"]
    engine = Engine(extended)
    with refused(TokenOutOfVocabulary, token="Zorblax"):
        run(engine, [DecodingRequest("What is a Zorblax?", (), 4)])
    alone = [heard.text for prompt in good for heard in run(Engine(extended), [DecodingRequest(prompt, (), 4)])]
    assert [heard.text for heard in run(engine, [DecodingRequest(prompt, (), 4) for prompt in good])] == alone


def test_a_passage_with_a_token_beyond_the_vocabulary_is_the_only_one_without_an_atom(extended: LanguageModel) -> None:
    meta_init = random_meta_init(extended, 0.01)
    passages = [Passage("a", "Les", "Les Dripen was born."), Passage("b", "", "The Zorblax is here.")]
    good, bad = AtomExtractor(extended, meta_init).extract(passages)
    assert good.atom is not None and not good.problem
    assert bad.atom is None and "Zorblax" in bad.problem


def extend(lm: LanguageModel, folder: Path, **named: str) -> None:
    """Give the tokenizer tokens that the model has no embedding for, in these parts."""
    lm.tokenizer.add_special_tokens(named)
    lm.tokenizer.save_pretrained(str(folder))


def test_a_padding_token_beyond_the_vocabulary_is_replaced(tiny: LanguageModel, folder: Path) -> None:
    """As people add one to a model that has none; what stands in the padding changes nothing."""
    lm = load(tiny, folder)
    extend(lm, folder, pad_token="<pad-added>")
    lm = load(tiny, folder)
    assert lm.tokenizer.pad_token_id >= lm.vocabulary_size > lm.pad_id
    passages = [Passage("a", "", "Les."), Passage("b", "", "Les Dripen was born in Lairton.")]
    assert all(item.atom is not None for item in AtomExtractor(lm, random_meta_init(lm, 0.01)).extract(passages))
    requests = [DecodingRequest(prompt, (), 4) for prompt in ("Where?", "In which city was Les Dripen born?")]
    assert [h.text for h in run(Engine(lm), requests)] == [h.text for h in run(Engine(tiny), requests)]


@pytest.mark.parametrize("part", ["bos_token", "eos_token"])
def test_a_start_or_end_beyond_the_vocabulary_is_refused(tiny: LanguageModel, folder: Path, part: str) -> None:
    extend(load(tiny, folder), folder, **{part: "<added>"})
    with refused(ModelError, "tokenizer_of_another_model", token="<added>", vocabulary=2236):
        load(tiny, folder)


@pytest.mark.parametrize(
    ("generation", "ends"),
    [(7, (7,)), ([7, 8], (7, 8)), ([], ()), (None, ()), ("no file", ())],
)
def test_end_tokens_in_each_form(tiny: LanguageModel, folder: Path, generation: Any, ends: tuple[int, ...]) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation != "no file":
        edit_json(folder / "generation_config.json", eos_token_id=generation)
    assert load(tiny, folder).end_ids == (*tiny.eos, *ends)


def test_end_tokens_of_the_models_own_configuration_count_too(tiny: LanguageModel, folder: Path) -> None:
    edit_json(folder / "config.json", eos_token_id=[2, 9])
    assert load(tiny, folder).end_ids == (2, 9)


def test_the_end_of_a_turn_in_the_chat_template_ends_an_answer(tiny: LanguageModel, folder: Path) -> None:
    lm = load(tiny, folder)
    # A token that the model has a row for, as chat models have.
    token = lm.tokenizer.convert_ids_to_tokens(100)
    lm.tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    lm.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }} " + token + "\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    lm.tokenizer.save_pretrained(str(folder))
    assert load(tiny, folder).end_ids == (*tiny.eos, 100)


@pytest.mark.parametrize("found", ["</s>", [2, "x"], [[2]], 2.0])
def test_end_tokens_that_are_no_ids_are_refused(tiny: LanguageModel, folder: Path, found: Any) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=found)
    with refused(ModelError, "bad_end_token", path=str(folder)):
        load(tiny, folder)


def test_end_tokens_that_cannot_be_read_are_not_passed_over(tiny: LanguageModel, folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [2,')
    with refused(ModelError, "json_damaged", file="generation_config.json"):
        load(tiny, folder)


def test_a_task_with_a_token_beyond_the_vocabulary_is_named(extended: LanguageModel, tmp_path: Path) -> None:
    lengths, shape = Lengths.of(extended.config), ShapeConfig()
    good, bad = Passage("a", "", "Les Dripen was born."), Passage("b", "", "The Zorblax is here.")
    lengths.check(Task((good,), (TaskQuestion("Where?", "Here", (0,)),), "t"), "t.jsonl line 1", shape)
    for task in (
        Task((bad,), (TaskQuestion("Where?", "Here", (0,)),), "t"),
        Task((good,), (TaskQuestion("What is a Zorblax?", "A thing", (0,)),), "t"),
        Task((good,), (TaskQuestion("What?", "A Zorblax", (0,)),), "t"),
    ):
        with refused(CorpusError, "token_out_of_vocabulary", token="Zorblax") as info:
            lengths.check(task, "t.jsonl line 1", shape)
        assert str(info.value).startswith("t.jsonl line 1")


def test_passages_with_such_a_token_stop_no_training_on_others(extended: LanguageModel) -> None:
    good, bad = Passage("a", "", "Les Dripen was born."), Passage("b", "", "The Zorblax is here.")
    subspace, settings = extended.subspace, TtaConfig(name="tta", steps=1)
    questions = [[good], [good, bad], [bad]]
    first, both, none = adapt_online(extended, subspace, subspace.initial(), questions, settings)
    assert first.update is not None and both.update is not None and torch.equal(first.update, both.update)
    assert none.update is None and none.note and both.note and not first.note
    items = [Augmented(passage, (), (Pair("Where?", "Here"),)) for passage in (good, bad)]
    trained, refusal = AdapterTrainer(extended, AdapterConfig(rank=2, epochs=1)).train(items)
    assert trained.values is not None and refusal.values is None and "Zorblax" in refusal.problem
