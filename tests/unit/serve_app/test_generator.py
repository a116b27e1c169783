"""The generator's deployment in this process: every kind of method, several requests at once, no bank loader."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from regrad.bank.reader import BankReader
from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.errors import PassageNotFound, PromptTooLong
from regrad.evaluation.config import EvalBatchConfig
from regrad.evaluation.runner import Generator
from regrad.inference.engine import DecodingLoop, Ticket
from regrad.inference.rows import DecodingRequest
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.methods.base import BankNeed, Evidence, PassageUse, open_question
from regrad.models.loading import LanguageModel
from regrad.retrieval.hits import Hit
from regrad.training.translator.artifact import Translator
from serve_app.config import ServeConfig
from serve_app.generator import GeneratorDeployment
from serve_app.messages import Answered, Ask, Piece, Release, Retrieved, RoutedAsk, Sampling, Turn
from serve_app.methods import Prepared, RequestBuilder, offers_of
from serve_app.rollout import ReleaseConfig, ReleaseList, write_releases
from tests.tools.adapting import adapter_bank, generated_bank, untrained_translator
from tests.tools.recording import Recorded
from tests.tools.releasing import commit
from tests.unit.serve_app.test_methods import config

TOKENS = Sampling(4)


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch: pytest.MonkeyPatch, recorded: Any) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [])


@pytest.fixture
def generator(tmp_path: Path, meta_init: MetaInit) -> GeneratorDeployment:
    meta_init.save(tmp_path / "meta-init")
    places = {"meta_init": str(tmp_path / "meta-init"), "bank": "b", "index": "i"}
    return GeneratorDeployment(ServeConfig.model_validate(places))


@pytest.fixture
def release(tmp_path: Path, meta_init: MetaInit) -> Release:
    return Release("main", str(tmp_path / "meta-init"), "b", 1, meta_init.fingerprint)


def direct(release: Release, question: str) -> RoutedAsk:
    return RoutedAsk(Ask(question, "direct", sampling=TOKENS), release, False, BankNeed.NOTHING)


def regrad(release: Release) -> RoutedAsk:
    return RoutedAsk(Ask("Who?", "regrad", sampling=TOKENS), release, True, BankNeed.SUM)


def answers(generator: GeneratorDeployment, *given: Any) -> dict[int, Answered | Exception]:
    async def run() -> dict[int, Answered | Exception]:
        return {number: answer async for finished in generator.answer(*given) for number, answer in finished}

    return asyncio.run(run())


def test_the_meta_init_of_a_release_in_force_is_open_before_the_first_question(
    tmp_path: Path, meta_init: MetaInit, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(meta_init, phi0=meta_init.phi0 + 1)
    places = [str(tmp_path / name) for name in ("meta-init", "other")]
    for place, made in zip(places, (meta_init, other), strict=True):
        made.save(place)
    bank = tmp_path / "bank"
    commit(bank, other)
    served = config(meta_init=places[0], bank=str(bank), releases=str(tmp_path / "releases.json"))
    write_releases(served, ReleaseList(releases=(ReleaseConfig(meta_init=places[1], bank=str(bank)),)))
    generator = GeneratorDeployment(served)
    monkeypatch.setattr(MetaInit, "load", None)
    release = Release("main", places[1], str(bank), 1, other.fingerprint)
    assert isinstance(answers(generator, [direct(release, "Who?")], None, None)[0], Answered)


def test_each_of_several_requests_gets_its_own_answer_or_error(
    generator: GeneratorDeployment, release: Release
) -> None:
    routed = [direct(release, "Who?"), regrad(release), direct(release, "word " * 300)]
    found = answers(generator, routed, [None, PassageNotFound("no such passage"), None], [None, None, None])
    assert {number: type(answer) for number, answer in found.items()} == {
        0: Answered,
        1: PassageNotFound,
        2: PromptTooLong,
    }


def test_each_request_has_the_solved_questions_that_are_nearest_to_its_own(
    tmp_path: Path, meta_init: MetaInit, tiny: LanguageModel, release: Release
) -> None:
    meta_init.save(tmp_path / "meta-init")
    asked = ["Who taught the painter?", "Which river passes Olm?", "Which river passes Zalt?"]
    rows = [{"id": f"d{n}", "question": text, "answers": [f"a{n}"]} for n, text in enumerate(asked)]
    (tmp_path / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = {"name": "direct", "demonstrations": 1, "which_demonstrations": "nearest"}
    places = {"meta_init": str(tmp_path / "meta-init"), "demonstrations": str(tmp_path / "solved.jsonl")}
    served = GeneratorDeployment(config(**places, methods=[method]))
    routed = [direct(release, text) for text in ("Who was the painter?", asked[1], "Why?")]
    found = answers(served, routed, None, None)
    for number, shown in enumerate((0, 2, 0)):
        prompts = tiny.config.prompts
        prompt = f"{prompts.prompt(asked[shown])} a{shown}\n{prompts.prompt(routed[number].ask.question)}"
        (expected,) = Generator(tiny, EvalBatchConfig(rows=1)).answers([DecodingRequest(prompt, (), 4)])
        answer = found[number]
        assert isinstance(answer, Answered), answer
        assert (answer.text, answer.prompt_tokens) == (expected.text, expected.prompt_tokens)


def test_a_conversations_solved_questions_are_those_that_an_evaluation_finds(
    tmp_path: Path, meta_init: MetaInit, tiny: LanguageModel, release: Release
) -> None:
    """By the question and what was said before it; instructions, which an evaluation's turns never are, stay out."""
    meta_init.save(tmp_path / "meta-init")
    asked = ["Which river passes Olm?", "Who taught the painter?"]
    rows = [{"id": f"d{n}", "question": text, "answers": [f"a{n}"]} for n, text in enumerate(asked)]
    (tmp_path / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = {"name": "direct", "demonstrations": 1, "which_demonstrations": "nearest"}
    places = {"meta_init": str(tmp_path / "meta-init"), "demonstrations": str(tmp_path / "solved.jsonl")}
    served = GeneratorDeployment(config(**places, methods=[method]))
    turns = (Turn("system", "Olm, river, Olm."), Turn("user", "Who was the painter?"), Turn("assistant", "Anna."))
    ask = Ask("And then?", "direct", sampling=TOKENS, turns=turns)
    answer = answers(served, [RoutedAsk(ask, release, False, BankNeed.NOTHING)], None, None)[0]
    prompts = tiny.config.prompts
    said = prompts.conversation([(turn.role, turn.content) for turn in turns])
    prompt = f"{said}{prompts.prompt(asked[1])} a1\n{prompts.prompt(ask.question)}"
    (expected,) = Generator(tiny, EvalBatchConfig(rows=1)).answers([DecodingRequest(prompt, (), 4)])
    assert isinstance(answer, Answered), answer
    assert (answer.text, answer.prompt_tokens) == (expected.text, expected.prompt_tokens)


def test_what_questions_begin_with_is_kept_and_counted(
    generator: GeneratorDeployment, release: Release, recorded: Recorded
) -> None:
    for number in range(3):
        answers(generator, [direct(release, f"{'word ' * 40}{number}")], None, None)
    assert recorded.of("regrad_prefix_hits") == [(1,)]
    assert recorded.of("regrad_prefix_tokens")[0][0] >= 40
    kept = [size for (size,) in recorded.of("regrad_prefix_bytes")]
    assert kept[0] == 0 < kept[1] == kept[2]


def test_a_stream_ends_with_the_answer_of_a_whole_request(generator: GeneratorDeployment, release: Release) -> None:
    async def run() -> list[Piece | Answered]:
        return [event async for event in generator.stream([direct(release, "Who?")], None, None)]

    *pieces, last = asyncio.run(run())
    whole = answers(generator, [direct(release, "Who?")], None, None)[0]
    assert isinstance(last, Answered) and isinstance(whole, Answered)
    assert "".join(piece.text for piece in pieces if isinstance(piece, Piece)) == last.text == whole.text


def test_without_the_bank_loader_nothing_is_computed_and_the_answer_says_so(
    generator: GeneratorDeployment, release: Release, passages: list[Passage]
) -> None:
    found = Retrieved(tuple(Hit(passage, 1.0) for passage in passages[:2]), 1.0)
    (answer,) = answers(generator, [regrad(release)], [found], None).values()
    assert isinstance(answer, Answered)
    assert [use.tier for use in answer.uses] == [Tier.MISSING] * 2
    assert answer.bank_version is None
    (note,) = answer.degraded
    assert note.policy == "fewer" and "the bank loader is gone" in note.reason


def test_passages_that_do_not_fit_are_left_out_of_the_prompt_and_the_answer_says_so(
    generator: GeneratorDeployment, release: Release, passages: list[Passage]
) -> None:
    long = [replace(passage, text=passage.text * 9) for passage in passages[:3]]
    found = Retrieved(tuple(Hit(passage, 1.0) for passage in [passages[3], *long]), 1.0)
    routed = RoutedAsk(Ask("Who?", "rag", sampling=TOKENS), release, True, BankNeed.NOTHING)
    short = Retrieved(found.hits[:1], 1.0)
    given = answers(generator, [routed, routed], [found, short], None)
    answer, alone = given[0], given[1]
    assert isinstance(answer, Answered) and isinstance(alone, Answered)
    (note,) = answer.degraded
    assert (note.policy, note.passage_ids) == ("drop", tuple(passage.id for passage in long))
    assert (answer.text, answer.prompt_tokens) == (alone.text, alone.prompt_tokens)
    assert alone.degraded == ()


def test_methods_that_train_or_read_adapters_are_answered_like_any_other(
    tiny: LanguageModel, meta_init: MetaInit, world: World, tmp_path: Path
) -> None:
    meta_init.save(tmp_path / "meta-init")
    known = adapter_bank(tiny, world, str(tmp_path / "adapters"))[2]
    methods: list[Any] = ["rag", {"name": "tta", "lr": 1e-2}, {"name": "prag", "bank": str(tmp_path / "adapters")}]
    served = config(meta_init=str(tmp_path / "meta-init"), methods=methods)
    release = Release("main", served.meta_init, "b", 1, meta_init.fingerprint)
    found = Retrieved(tuple(Hit(passage, 1.0) for passage in known[:2]), 0.0)
    generator, alone = GeneratorDeployment(served), Generator(tiny, EvalBatchConfig(rows=1))
    evidence = Evidence(open_question("Who?"), tuple(known[:2]))
    texts = set()
    for name, offer in offers_of(served).items():
        routed = offer.routed(Ask("Who?", name, sampling=TOKENS), release)
        (answered,) = answers(generator, [routed], [found], None).values()
        assert isinstance(answered, Answered)
        method = offer.settings.open(tiny)
        (plan,) = method.plan([evidence], method.open_atoms())
        prompt = plan.prompt.text(tiny.config.prompts)
        (expected,) = alone.answers([DecodingRequest(prompt, plan.updates, TOKENS.max_new_tokens)])
        assert answered.text == expected.text, name
        assert [use.tier for use in answered.uses] == ([Tier.DISK, Tier.DISK] if name == "prag" else []), name
        texts.add(answered.text)
    assert len(texts) > 1


def test_a_bank_is_read_beside_the_decoding_and_only_what_it_lacks_is_generated_between_two_steps(
    tiny: LanguageModel,
    meta_init: MetaInit,
    passages: list[Passage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow store would hold up every request that is being decoded."""
    meta_init.save(tmp_path / "meta-init")
    made = untrained_translator(tiny, tmp_path / "translator")
    passages = passages[:3]
    generated_bank(tiny, made, str(tmp_path / "bank"), passages[:2])
    method = {"name": "dyprag", "translator": str(tmp_path / "translator"), "bank": str(tmp_path / "bank")}
    served = config(meta_init=str(tmp_path / "meta-init"), methods=[method])
    release = Release("main", served.meta_init, "b", 1, meta_init.fingerprint)
    generator, alone = GeneratorDeployment(served), Generator(tiny, EvalBatchConfig(rows=1))
    (offer,) = offers_of(served).values()
    opened = offer.settings.open(tiny)
    done: list[tuple[str, bool]] = []

    def noting(name: str, action: Any) -> Any:
        def act(*arguments: Any) -> Any:
            done.append((name, threading.current_thread().name == "decoding"))
            return action(*arguments)

        return act

    monkeypatch.setattr(BankReader, "fetch", noting("read", BankReader.fetch))
    monkeypatch.setattr(Translator, "lora_of", noting("generated", Translator.lora_of))
    for shown, expected in ((passages[:2], [("read", False)]), (passages, [("read", False), ("generated", True)])):
        done.clear()
        routed = offer.routed(Ask("Who?", "dyprag", sampling=TOKENS), release)
        found = Retrieved(tuple(Hit(one, 1.0) for one in shown), 0.0)
        (answered,) = answers(generator, [routed], [found], None).values()
        assert isinstance(answered, Answered) and done == expected
        (plan,) = opened.plan([Evidence(open_question("Who?"), tuple(shown))], opened.open_atoms())
        prompt = plan.prompt.text(tiny.config.prompts)
        (text,) = alone.answers([DecodingRequest(prompt, plan.updates, TOKENS.max_new_tokens)])
        assert answered.text == text.text


@pytest.mark.parametrize("late", ["decoding", "contributions"])
def test_one_deadline_holds_for_all_phases_of_a_request(
    generator: GeneratorDeployment, release: Release, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """Two phases of a second each: either alone would be in time."""
    prepare, contributions, submit = RequestBuilder.prepare, RequestBuilder.contributions, DecodingLoop.submit

    def prepared(self: RequestBuilder, *given: Any) -> Prepared:
        time.sleep(1.0)
        return prepare(self, *given)

    def measured(self: RequestBuilder, *given: Any) -> tuple[PassageUse, ...]:
        time.sleep(1.0 if late == "contributions" else 0.0)
        return contributions(self, *given)

    def submitted(self: DecodingLoop, *given: Any) -> Ticket:
        self.run(lambda: time.sleep(1.0 if late == "decoding" else 0.0))
        return submit(self, *given)

    monkeypatch.setattr(RequestBuilder, "needs_model", lambda *_: True)
    monkeypatch.setattr(RequestBuilder, "prepare", prepared)
    monkeypatch.setattr(RequestBuilder, "contributions", measured)
    monkeypatch.setattr(DecodingLoop, "submit", submitted)

    def asked(seconds: float) -> Answered | Exception:
        ask = Ask("Who?", "direct", sampling=TOKENS, seconds=seconds, contributions="norms")
        routed = RoutedAsk(ask, release, False, BankNeed.NOTHING)
        return answers(generator, [routed], [None], None)[0]

    assert isinstance(asked(60.0), Answered)
    assert isinstance(asked(1.6), TimeoutError)
