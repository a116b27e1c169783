"""A server that reads passages one by one gives the answers of an evaluation that does."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.errors import ModelError
from regrad.evaluation.config import EvalBatchConfig
from regrad.evaluation.one_by_one import OneByOne
from regrad.evaluation.runner import Generator
from regrad.gradients.extractor import AtomExtractor
from regrad.inference.rows import DecodingRequest
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.methods.base import AtomProvider, Atoms, Evidence, Method, Plan, open_question
from regrad.methods.one_by_one import ReplyReader, apart
from regrad.methods.policies import PromptFitter
from regrad.methods.reading import AnswerBatch
from regrad.methods.regrad import BoundMetaInit
from regrad.models.loading import LanguageModel
from regrad.retrieval.config import OneByOneConfig
from regrad.retrieval.hits import Hit
from serve_app.generator import GeneratorDeployment
from serve_app.http.errors import problem_of
from serve_app.messages import Answered, Ask, GradientSum, Piece, Release, Retrieved, Sampling
from serve_app.methods import LoadedAtoms, offers_of
from tests.tools.adapting import adapter_bank
from tests.unit.serve_app.test_generator import answers
from tests.unit.serve_app.test_methods import config
from tests.unit.serve_app.test_request_builder import MISSING, loaded

TOKENS = Sampling(6)
APART = {"one_by_one": {"temperature": 0.05}}
SCORES = (0.1, 0.3, 0.25)


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch: pytest.MonkeyPatch, recorded: Any) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [])


class Apart:
    """The atoms of passages that come one by one."""

    def __init__(self, gradients: GradientSum) -> None:
        self._by_id = {one.uses[0].id: LoadedAtoms(one, one.fingerprint).atoms for one in gradients.apart()}

    def find(self, evidences: Sequence[Evidence], parts: bool) -> list[Atoms]:
        return [self._by_id[evidence.passages[0].id] for evidence in evidences]


def expected(lm: LanguageModel, method: Method, atoms: AtomProvider, evidence: Evidence) -> tuple[Plan, str, int]:
    """What an evaluation gives."""
    fitter, generator = PromptFitter(lm, lm.config.prompts, "drop"), Generator(lm, EvalBatchConfig(rows=1))

    def fit(plan: Plan) -> tuple[Plan, DecodingRequest | None]:
        fitted = fitter.fitted(plan, TOKENS.max_new_tokens)
        request = DecodingRequest(fitted.text, fitted.plan.updates, TOKENS.max_new_tokens, ids=fitted.ids)
        return fitted.plan, request

    apart = OneByOne(lm, OneByOneConfig(temperature=0.05), method, atoms)
    ((plan, answer),) = apart.answers([evidence], apart.plans([evidence]), fit, generator.answers)
    assert answer is not None
    return plan, answer.text, answer.prompt_tokens


def test_every_kind_of_method_answers_as_in_an_evaluation(
    tiny: LanguageModel, meta_init: MetaInit, world: World, tmp_path: Path
) -> None:
    meta_init.save(tmp_path / "meta-init")
    passages = adapter_bank(tiny, world, str(tmp_path / "adapters"))[2]
    methods: list[Any] = [
        {"name": "rag", **APART},
        {"name": "prag", "bank": str(tmp_path / "adapters"), **APART},
        {"name": "regrad", **APART},
        {"name": "regrad-online", **APART},
        {"name": "together", "method": "rag"},
    ]
    served = config(meta_init=str(tmp_path / "meta-init"), methods=methods)
    release = Release("main", served.meta_init, "b", 1, meta_init.fingerprint)
    found = Retrieved(tuple(Hit(*pair) for pair in zip(passages, SCORES, strict=True)), 0.0)
    extracted = [item.atom for item in AtomExtractor(tiny, meta_init).extract(passages)]
    atoms = torch.stack([atom for atom in extracted if atom is not None])
    gradients = loaded(meta_init, passages, atoms, [None, None, None])
    deletions = replace(GradientSum.unread(found, release, "not asked"), bank_version="1-x")  # and nothing is deleted
    evidence = Evidence(open_question("Who?"), tuple(passages), SCORES)
    generator, texts = GeneratorDeployment(served), {}
    for name, offer in offers_of(served).items():
        total = {"regrad": gradients, "regrad-online": deletions}.get(name)
        routed = offer.routed(Ask("Who?", name, sampling=TOKENS), release)
        (answered,) = answers(generator, [routed], [found], [total]).values()
        assert isinstance(answered, Answered), answered
        texts[name] = answered.text
        if name == "together":
            continue
        follows = offer.settings.FOLLOWS_RELEASE
        method = offer.settings.open_at(BoundMetaInit(tiny, meta_init)) if follows else offer.settings.open(tiny)
        provider = Apart(total) if total else method.open_atoms()
        plan, text, tokens = expected(tiny, method, provider, evidence)
        assert (answered.text, answered.prompt_tokens, answered.uses) == (text, tokens, plan.uses), name
        if name != "rag":
            tier = {"prag": Tier.DISK, "regrad": Tier.DISK, "regrad-online": Tier.ONLINE}[name]
            assert [(use.id, use.tier) for use in answered.uses] == [(one.id, tier) for one in passages], name
    assert texts["rag"] != texts["together"] and len(set(texts.values())) > 2


def test_a_passage_without_an_atom_is_one_that_its_policy_decides(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], tmp_path: Path
) -> None:
    meta_init.save(tmp_path / "meta-init")
    three = passages[:3]
    served = config(meta_init=str(tmp_path / "meta-init"), methods=[{"name": "regrad", "on_missing": "fewer", **APART}])
    release = Release("main", served.meta_init, "b", 1, meta_init.fingerprint)
    found = Retrieved(tuple(Hit(*pair) for pair in zip(three, SCORES, strict=True)), 0.0)
    extracted = [item.atom for item in AtomExtractor(tiny, meta_init).extract(three)]
    atoms = torch.stack([atom for atom in extracted if atom is not None])
    gradients = loaded(meta_init, three, atoms, [None, replace(MISSING, id=three[1].id), None])
    (offer,) = offers_of(served).values()
    routed = offer.routed(Ask("Who?", "regrad", sampling=TOKENS), release)
    generator = GeneratorDeployment(served)
    (answered,) = answers(generator, [routed], [found], [gradients]).values()
    assert isinstance(answered, Answered), answered
    assert [use.missing for use in answered.uses] == [False, True, False]
    assert [(note.policy, note.passage_ids) for note in answered.degraded] == [("fewer", (three[1].id,))]
    measuring = replace(routed, ask=replace(routed.ask, contributions="leave_one_out"))
    (measured,) = answers(generator, [measuring], [found], [gradients]).values()
    assert isinstance(measured, Answered), measured
    assert [use.contribution is None for use in measured.uses] == [False, True, False], "read without the passage"

    async def streamed() -> list[Piece | Answered]:
        return [event async for event in generator.stream([routed], [found], [gradients])]

    piece, whole = asyncio.run(streamed())
    assert isinstance(piece, Piece) and isinstance(whole, Answered)
    assert piece.text == whole.text == answered.text


def test_contributions_are_what_the_answer_loses_without_a_passage_and_norms_are_the_methods(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], tmp_path: Path
) -> None:
    meta_init.save(tmp_path / "meta-init")
    three = passages[:3]
    served = config(meta_init=str(tmp_path / "meta-init"), methods=[{"name": "regrad", "one_by_one": {}}])
    release = Release("main", served.meta_init, "b", 1, meta_init.fingerprint)
    hits = tuple(Hit(*pair) for pair in zip(three, SCORES, strict=True))
    extracted = [item.atom for item in AtomExtractor(tiny, meta_init).extract(three)]
    atoms = torch.stack([atom for atom in extracted if atom is not None])
    gradients = loaded(meta_init, three, atoms, [None, None, None])
    (offer,) = offers_of(served).values()
    generator = GeneratorDeployment(served)
    bound = BoundMetaInit(tiny, meta_init)
    method = offer.settings.open_at(bound)
    evidence = Evidence(open_question("Who?"), tuple(three), SCORES)
    plans = method.answer_plans(apart(evidence), Apart(gradients))

    def asked(found: Retrieved, total: GradientSum = gradients, **changes: Any) -> Answered:
        routed = offer.routed(Ask("Who?", "regrad", sampling=TOKENS, **changes), release)
        (answered,) = answers(generator, [routed], [found], [total]).values()
        assert isinstance(answered, Answered), answered
        return answered

    for temperature in (None, 0.05):
        whole = asked(Retrieved(hits, 0.0, temperature=temperature), contributions="leave_one_out")
        weights = torch.tensor(SCORES).div(temperature or 1.0).softmax(0)
        read = ReplyReader(tiny, meta_init.model.prompts).likelihoods(OneByOneConfig(), plans, [whole.text])[0].exp()
        total = float((weights * read).sum())
        expected = []
        for place in range(3):
            kept = torch.arange(3) != place
            expected.append(math.log(total / float((weights[kept] * read[kept]).sum() / weights[kept].sum())))
        assert [use.contribution for use in whole.uses] == pytest.approx(expected, abs=1e-3)
    norms = [use.contribution for use in asked(Retrieved(hits, 0.0), contributions="norms").uses]
    assert norms == pytest.approx(method.bound.norms(atoms.bfloat16().float(), 1.0), rel=1e-3)
    assert [use.contribution for use in asked(Retrieved(hits, 0.0)).uses] == [None] * 3
    alone = asked(Retrieved(hits[:1], 0.0), gradients.apart()[0], contributions="leave_one_out")
    assert [use.contribution for use in alone.uses] == [None]  # nothing is left that could be compared


def test_a_question_without_passages_is_answered_as_without_the_setting(
    tiny: LanguageModel, meta_init: MetaInit, tmp_path: Path
) -> None:
    meta_init.save(tmp_path / "meta-init")
    methods: list[Any] = [{"name": "rag", **APART}, {"name": "together", "method": "rag"}]
    served = config(meta_init=str(tmp_path / "meta-init"), methods=methods)
    release = Release("main", served.meta_init, "b", 1, meta_init.fingerprint)
    generator = GeneratorDeployment(served)
    texts = []
    for name, offer in offers_of(served).items():
        routed = offer.routed(Ask("Who?", name, sampling=TOKENS), release)
        (answered,) = answers(generator, [routed], [Retrieved((), 0.0)], None).values()
        assert isinstance(answered, Answered), answered
        texts.append((answered.text, answered.degraded))
    assert texts[0] == texts[1] and "no passage was found" in str(texts[0][1][0])


def test_likelihoods_that_are_not_finite_are_an_error_of_their_request_alone(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta_init.save(tmp_path / "meta-init")
    methods: list[Any] = [{"name": "rag", **APART}, {"name": "together", "method": "rag"}]
    served = config(meta_init=str(tmp_path / "meta-init"), methods=methods)
    release = Release("main", served.meta_init, "b", 1, meta_init.fingerprint)
    found = Retrieved(tuple(Hit(*pair) for pair in zip(passages[:3], SCORES, strict=True)), 0.0)
    monkeypatch.setattr(ReplyReader, "read", lambda _, settings, batch: torch.full((len(batch.places),), math.nan))
    routed = [offer.routed(Ask("Who?", name, sampling=TOKENS), release) for name, offer in offers_of(served).items()]
    answered = answers(GeneratorDeployment(served), routed, [found, found], None)
    assert isinstance(answered[0], ModelError) and isinstance(answered[1], Answered), answered
    assert (answered[0].code, answered[0].fields) == ("model.likelihood_not_finite", {"question": "Who?"})
    assert problem_of(answered[0]).status == 503


def test_one_deadline_holds_for_all_of_it_and_a_late_request_reads_no_further(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta_init.save(tmp_path / "meta-init")
    served = config(meta_init=str(tmp_path / "meta-init"), methods=[{"name": "rag", **APART}])
    release = Release("main", served.meta_init, "b", 1, meta_init.fingerprint)
    found = Retrieved(tuple(Hit(*pair) for pair in zip(passages[:3], SCORES, strict=True)), 0.0)
    read, readings = ReplyReader.read, []

    def slowly(self: ReplyReader, settings: OneByOneConfig, batch: AnswerBatch) -> torch.Tensor:
        readings.append(batch.places)
        time.sleep(1.0)
        return read(self, settings, batch)

    monkeypatch.setattr(ReplyReader, "read", slowly)
    (offer,) = offers_of(served).values()
    generator = GeneratorDeployment(served)

    def asked(seconds: float) -> Answered | Exception:
        readings.clear()
        routed = offer.routed(Ask("Who?", "rag", sampling=TOKENS, seconds=seconds), release)
        (answered,) = answers(generator, [routed], [found], None).values()
        return answered

    assert isinstance(asked(60.0), Answered) and len(readings) >= 2, "each reading would be in time"
    assert isinstance(asked(1.5), TimeoutError) and len(readings) <= 2
