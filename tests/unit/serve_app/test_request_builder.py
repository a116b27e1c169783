"""What a request becomes at the generator: prompt, update, and what is said of gradients that could not be had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import AtomNotFound, BankError, FingerprintMismatch, NothingFound, PromptTooLong
from regrad.gradients.extractor import AtomExtractor
from regrad.inference.rows import Finished
from regrad.lab.wording import LAB_PROMPTS
from regrad.meta_init import MetaInit
from regrad.methods.base import NOTHING_FOUND, PassageUse
from regrad.methods.demonstrations import DemonstrationPool
from regrad.methods.one_by_one import ReplyReader
from regrad.methods.policies import PromptFitter
from regrad.methods.regrad import BoundMetaInit
from regrad.models.batching import pad_batch, sequence_losses
from regrad.models.loading import LanguageModel
from regrad.retrieval.hits import Hit
from regrad.settings import parse_settings
from serve_app.config import ServeConfig
from serve_app.messages import Ask, GradientSum, Retrieved, Turn
from serve_app.methods import RequestBuilder, offers_of, open_own
from tests.tools.decoded import vector
from tests.tools.refusals import refused

QUESTION = "Where was Les Dripen born?"
MISSING = PassageUse("", problem="it is not in this version")
DELETED = PassageUse("", problem="it was deleted", deleted=True)
ALL_MISSING, ALL_DELETED = [MISSING] * 3, [DELETED] * 3


@pytest.fixture
def three(passages: list[Passage]) -> list[Passage]:
    return passages[:3]


@pytest.fixture
def atoms(tiny: LanguageModel, meta_init: MetaInit, three: list[Passage]) -> Tensor:
    found = AtomExtractor(tiny, meta_init).extract(three)
    return torch.stack([item.atom for item in found if item.atom is not None])


def builder(lm: LanguageModel, meta_init: MetaInit, policy: str = "online", **settings: Any) -> RequestBuilder:
    args = {"meta_init": "m", "bank": "b", "index": "i", "on_missing": policy, **settings}
    config = parse_settings(ServeConfig, args, "test")
    offers = offers_of(config)
    fitter = PromptFitter(lm, LAB_PROMPTS, config.on_overflow)
    pool, reader = DemonstrationPool([], False), ReplyReader(lm, LAB_PROMPTS)
    return RequestBuilder(BoundMetaInit(lm, meta_init), fitter, offers, open_own(offers, lm), pool, reader)


def retrieved(passages: list[Passage]) -> Retrieved:
    return Retrieved(tuple(Hit(passage, 1.0) for passage in passages), 1.0)


def loaded(
    meta_init: MetaInit, passages: list[Passage], atoms: Tensor, lacking: list[PassageUse | None]
) -> GradientSum:
    """What the bank loader gives when the passages with an entry in `lacking` have no atom for that reason."""
    had = [i for i, use in enumerate(lacking) if use is None]
    uses = [
        PassageUse(passage.id, tier=Tier.DISK) if use is None else replace(use, id=passage.id)
        for passage, use in zip(passages, lacking, strict=True)
    ]
    total = atoms[had].sum(0).to(torch.bfloat16)
    return GradientSum(total, meta_init.fingerprint, "1-x", tuple(uses), 1.0, atoms[had].to(torch.bfloat16))


def near(found: Tensor | None, expected: Tensor) -> bool:
    assert found is not None
    return bool((found - expected).norm() / expected.norm() < 1e-2)


Case = Any


@pytest.fixture
def prepare(tiny: LanguageModel, meta_init: MetaInit, three: list[Passage], atoms: Tensor) -> Case:
    def prepared(policy: str, lacking: list[PassageUse | None], method: str = "regrad", **options: Any) -> Any:
        ask = Ask(QUESTION, method, gamma=1.5, **options)
        gradients = loaded(meta_init, three, atoms, lacking)
        return builder(tiny, meta_init, policy).prepare(ask, retrieved(three), gradients)

    return prepared


def test_with_all_gradients_the_update_is_that_of_the_paper(prepare: Case, meta_init: MetaInit, atoms: Tensor) -> None:
    found = prepare("fail", [None, None, None])
    assert near(vector(found.request.updates), meta_init.update(atoms.sum(0), 1.5))
    assert found.plan.notes == ()
    assert found.request.prompt == LAB_PROMPTS.prompt(QUESTION)


@pytest.mark.parametrize("lacking", [[None, MISSING, None], ALL_MISSING], ids=["one", "all"])
def test_online_computes_what_is_missing(
    prepare: Case, meta_init: MetaInit, atoms: Tensor, lacking: list[PassageUse | None]
) -> None:
    found = prepare("online", lacking)
    assert near(vector(found.request.updates), meta_init.update(atoms.sum(0), 1.5))
    assert [use.tier for use in found.plan.uses] == [Tier.DISK if use is None else Tier.ONLINE for use in lacking]
    (note,) = found.plan.notes
    assert note.policy == "online" and "not in this version" in note.reason
    assert note.passage_ids == tuple(use.id for use in found.plan.uses if use.tier is Tier.ONLINE)
    assert near(found.plan.parts.sum(0), atoms.sum(0))
    for part, atom in zip(found.plan.parts, atoms, strict=True):
        assert near(part.float(), atom)


def test_online_leaves_out_what_was_deleted(prepare: Case, meta_init: MetaInit, atoms: Tensor) -> None:
    found = prepare("online", [None, DELETED, MISSING], "regrad+icl")
    assert near(vector(found.request.updates), meta_init.update(atoms[[0, 2]].sum(0), 1.5))
    assert [use.tier for use in found.plan.uses] == [Tier.DISK, Tier.MISSING, Tier.ONLINE]
    assert [(d.policy, len(d.passage_ids)) for d in found.plan.notes] == [("online", 1), ("fewer", 1)]
    assert "it was deleted" in found.plan.notes[1].reason


def test_regrad_online_does_not_compute_what_was_deleted(
    prepare: Case, meta_init: MetaInit, atoms: Tensor, three: list[Passage]
) -> None:
    found = prepare("fail", [MISSING, DELETED, MISSING], "regrad-online")
    assert near(vector(found.request.updates), meta_init.update(atoms[[0, 2]].sum(0), 1.5))
    assert [use.tier for use in found.plan.uses] == [Tier.ONLINE, Tier.MISSING, Tier.ONLINE]
    assert [(d.policy, d.passage_ids) for d in found.plan.notes] == [("fewer", (three[1].id,))]
    assert not prepare("fail", ALL_DELETED, "regrad-online").request.updates


@pytest.mark.parametrize("policy", ["online", "fewer", "rag"])
def test_what_was_deleted_is_not_in_the_prompt(prepare: Case, three: list[Passage], policy: str) -> None:
    prompt = prepare(policy, [None, DELETED, None], "regrad+icl").request.prompt
    assert three[1].text not in prompt
    assert three[0].text in prompt and three[2].text in prompt


@pytest.mark.parametrize("policy", ["online", "fewer", "rag"])
def test_if_all_were_deleted_nothing_is_applied(prepare: Case, policy: str) -> None:
    found = prepare(policy, ALL_DELETED)
    assert not found.request.updates
    assert found.request.prompt == LAB_PROMPTS.prompt(QUESTION)
    assert len(found.plan.notes[-1].passage_ids) == 3


def test_fewer_sums_what_there_is(prepare: Case, meta_init: MetaInit, atoms: Tensor, three: list[Passage]) -> None:
    found = prepare("fewer", [None, MISSING, None])
    assert near(vector(found.request.updates), meta_init.update(atoms[[0, 2]].sum(0), 1.5))
    assert [(d.policy, d.passage_ids) for d in found.plan.notes] == [("fewer", (three[1].id,))]
    assert not prepare("fewer", ALL_MISSING).request.updates


def test_rag_puts_the_passages_into_the_prompt_instead(prepare: Case, three: list[Passage]) -> None:
    found = prepare("rag", [None, MISSING, None])
    assert not found.request.updates
    assert found.request.prompt == LAB_PROMPTS.prompt(QUESTION, list(reversed(three)))
    assert [d.policy for d in found.plan.notes] == ["rag"]


def test_fail_names_the_first_and_counts_the_others(prepare: Case, three: list[Passage]) -> None:
    with refused(AtomNotFound, passage_ids=[passage.id for passage in three]):
        prepare("fail", ALL_MISSING)
    with pytest.raises(AtomNotFound):
        prepare("fail", [None, None, MISSING])


@pytest.mark.parametrize("policy", ["online", "fewer", "rag", "fail"])
def test_a_dead_loader_is_dealt_with_by_the_policy(
    tiny: LanguageModel, meta_init: MetaInit, three: list[Passage], policy: str
) -> None:
    uses = tuple(PassageUse(passage.id, problem="the bank loader is gone") for passage in three)
    nothing = GradientSum(torch.zeros(0), meta_init.fingerprint, None, uses, 0.0)
    here, ask = builder(tiny, meta_init, policy), Ask(QUESTION, gamma=1.5)
    if policy == "fail":
        with refused(AtomNotFound, problem="the bank loader is gone"):
            here.prepare(ask, retrieved(three), nothing)
        return
    found = here.prepare(ask, retrieved(three), nothing)
    # Nobody knows what was deleted from the bank, so nothing is computed.
    assert [d.policy for d in found.plan.notes] == ["rag" if policy == "rag" else "fewer"]
    assert not found.request.updates
    assert not here.needs_model(ask, nothing)


def test_regrad_online_computes_nothing_if_the_bank_cannot_say_what_was_deleted(
    tiny: LanguageModel, meta_init: MetaInit, three: list[Passage]
) -> None:
    uses = tuple(PassageUse(passage.id, problem="the bank loader is gone") for passage in three)
    nothing = GradientSum(torch.zeros(0), meta_init.fingerprint, None, uses, 0.0)
    here, ask = builder(tiny, meta_init, "online"), Ask(QUESTION, method="regrad-online")
    assert not here.needs_model(ask, nothing)
    found = here.prepare(ask, retrieved(three), nothing)
    assert not found.request.updates
    assert [(d.policy, len(d.passage_ids)) for d in found.plan.notes] == [("fewer", 3)]
    assert "the bank loader is gone" in found.plan.notes[0].reason


def test_regrad_online_is_regrad_up_to_rounding(prepare: Case) -> None:
    cached, online = prepare("fail", [None] * 3), prepare("fail", ALL_MISSING, "regrad-online")
    assert near(vector(online.request.updates), cached.request.updates[0].vector)
    assert online.plan.notes == () and {use.tier for use in online.plan.uses} == {Tier.ONLINE}


def test_gradients_of_something_else_are_never_applied(
    tiny: LanguageModel, meta_init: MetaInit, three: list[Passage], atoms: Tensor
) -> None:
    gradients = loaded(meta_init, three, atoms, [None] * 3)
    here = builder(tiny, meta_init)
    with pytest.raises(FingerprintMismatch):
        here.prepare(Ask(QUESTION), retrieved(three), replace(gradients, fingerprint="f" * 16))
    with refused(BankError, "wrong_size", found=3):
        here.prepare(Ask(QUESTION), retrieved(three), replace(gradients, total=torch.zeros(3)))


@pytest.mark.parametrize("method", ["rag", "regrad", "regrad+icl", "regrad-online"])
def test_without_a_passage_the_base_model_answers_and_the_reply_says_so(
    tiny: LanguageModel, meta_init: MetaInit, method: str
) -> None:
    nothing = GradientSum(torch.zeros(tiny.subspace.size), meta_init.fingerprint, "1-x", (), 1.0)
    gradients = None if method == "rag" else nothing
    found = builder(tiny, meta_init).prepare(Ask(QUESTION, method), retrieved([]), gradients)
    assert found.plan.notes == (NOTHING_FOUND,)
    assert (found.request.updates, found.request.prompt) == ((), LAB_PROMPTS.prompt(QUESTION))


def test_without_a_passage_the_policy_fail_refuses(tiny: LanguageModel, meta_init: MetaInit) -> None:
    nothing = GradientSum(torch.zeros(tiny.subspace.size), meta_init.fingerprint, "1-x", (), 1.0)
    with refused(NothingFound, method="regrad"):
        builder(tiny, meta_init, "fail").prepare(Ask(QUESTION), retrieved([]), nothing)
    direct = builder(tiny, meta_init, "fail").prepare(Ask(QUESTION, "direct"), None, None)
    assert direct.plan.notes == ()


OWN_STOP, LENGTH, OTHER_STOP = ("stop", None, "\n"), ("length", None, ""), ("stop", ("!",), "")


@pytest.mark.parametrize(("reason", "stop", "end"), [OWN_STOP, LENGTH, OTHER_STOP], ids=["stop", "length", "other"])
def test_contributions_are_those_computed_directly(
    tiny: LanguageModel, meta_init: MetaInit, prepare: Case, reason: Any, stop: tuple[str, ...] | None, end: str
) -> None:
    answer, here = Finished("London", reason, 9, 3, 0.0, 0.0, 0.0, 1), builder(tiny, meta_init)
    found = prepare("online", [None, DELETED, MISSING])
    found = replace(found, request=replace(found.request, stop=stop))
    parts = [found.plan.parts[0].float(), found.plan.parts[1].float()]
    ask = Ask(QUESTION, gamma=1.5, contributions="leave_one_out")
    start = tiny.bos + tiny.encode(LAB_PROMPTS.prompt(QUESTION))
    ids = start + tiny.encode(f" London{end}")

    def loss(total: Tensor) -> float:
        batch = pad_batch([ids], [len(start)], tiny.pad_id, tiny.device)
        with torch.no_grad(), tiny.lora.applied(meta_init.update(total, 1.5)):
            return float(sequence_losses(tiny, batch, "sum"))

    whole = loss(parts[0] + parts[1])
    expected = [loss(parts[1]) - whole, None, loss(parts[0]) - whole]
    values = [use.contribution for use in here.contributions(ask, found, answer)]
    assert values[1] is None
    assert [values[0], values[2]] == pytest.approx([expected[0], expected[2]], abs=1e-3)
    norms = [use.contribution for use in here.contributions(replace(ask, contributions="norms"), found, answer)]
    alpha = meta_init.subspace.per_tensor(meta_init.step_sizes)
    assert [norms[0], norms[2]] == pytest.approx([float((1.5 * alpha * part).norm()) for part in parts], rel=1e-4)
    assert here.contributions(replace(ask, contributions=None), found, answer) == found.plan.uses


def test_contributions_of_updates_that_act_on_the_answer_are_those_by_a_mask(
    tiny: LanguageModel, meta_init: MetaInit, three: list[Passage], atoms: Tensor
) -> None:
    activated = replace(meta_init, acts_on="answer")
    here, ask = builder(tiny, activated), Ask(QUESTION, contributions="leave_one_out")
    found = here.prepare(ask, retrieved(three), loaded(activated, three, atoms, [None, None, None]))
    assert [update.acts_on for update in found.request.updates] == ["answer"]
    parts, start = found.plan.parts.float(), tiny.bos + tiny.encode(LAB_PROMPTS.prompt(QUESTION))
    batch = pad_batch([start + tiny.encode(" London")], [len(start)], tiny.pad_id, tiny.device)

    def loss(total: Tensor) -> float:
        with torch.no_grad(), tiny.lora.applied(activated.update(total), batch.acted_on("answer")):
            return float(sequence_losses(tiny, batch, "sum"))

    whole = loss(parts.sum(0))
    expected = [loss(parts.sum(0) - part) - whole for part in parts]
    uses = here.contributions(ask, found, Finished("London", "length", 9, 3, 0.0, 0.0, 0.0, 1))
    assert [use.contribution for use in uses] == pytest.approx(expected, abs=1e-3)
    assert len({round(value, 2) for value in expected}) > 1


def test_earlier_turns_come_before_the_question(tiny: LanguageModel, meta_init: MetaInit, three: list[Passage]) -> None:
    turns = (Turn("system", "Be brief."), Turn("user", "Who?"), Turn("assistant", "Ada"))
    found = builder(tiny, meta_init).prepare(Ask(QUESTION, "rag", turns=turns), retrieved(three[:1]), None)
    before = "Be brief.\nQuestion: Who?\nAnswer: Ada\n"
    assert found.request.prompt == before + LAB_PROMPTS.prompt(QUESTION, three[:1])


def test_a_raw_prompt_is_taken_as_it_is(tiny: LanguageModel, meta_init: MetaInit, three: list[Passage]) -> None:
    here = builder(tiny, meta_init)
    assert here.prepare(Ask("Once upon", "direct", raw=True), None, None).request.prompt == "Once upon"
    found = here.prepare(Ask("Once upon", "rag", raw=True), retrieved(three[:1]), None)
    assert found.request.prompt == LAB_PROMPTS.context_text(three[:1]) + "Once upon"


@pytest.mark.parametrize(("kind", "choices"), [("open", ()), ("yes-no", ()), ("choice", ("Ada", "Bob"))])
def test_a_question_is_asked_with_the_prompt_of_its_kind(
    tiny: LanguageModel, meta_init: MetaInit, three: list[Passage], kind: Any, choices: tuple[str, ...]
) -> None:
    ask = Ask(QUESTION, method="rag", kind=kind, choices=choices)
    found = builder(tiny, meta_init).prepare(ask, retrieved(three), None)
    question = Question("", QUESTION, (), kind, choices)
    assert found.request.prompt == LAB_PROMPTS.prompt_for(question, three[::-1])


@pytest.mark.parametrize(
    ("policy", "words", "found", "shown"),
    [("fail", 1, 3, 3), ("drop", 300, 3, 0), ("drop", 300, 0, 0)],
    ids=["passages", "question", "question alone"],
)
def test_a_prompt_that_may_not_or_cannot_be_shortened_is_refused(
    tiny: LanguageModel, meta_init: MetaInit, three: list[Passage], policy: str, words: int, found: int, shown: int
) -> None:
    here = builder(tiny, meta_init, on_overflow=policy)
    long = [replace(passage, text=passage.text * 9) for passage in three[:found]]
    with refused(PromptTooLong, passages=shown, context=tiny.context_length, max_new_tokens=20):
        here.prepare(Ask("word " * words, "rag"), retrieved(long), None)


def test_a_raw_prompt_is_measured_as_it_is_read(
    tiny: LanguageModel, meta_init: MetaInit, three: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, hits = Ask("Once upon", "rag", raw=True), retrieved(three[:2])
    whole = LAB_PROMPTS.context_text(three[1::-1]) + "Once upon"
    tokens = len(tiny.encode_prompt(whole, raw=True)) + ask.sampling.max_new_tokens
    monkeypatch.setattr(tiny, "context_length", tokens)
    assert builder(tiny, meta_init).prepare(ask, hits, None).request.prompt == whole
    monkeypatch.setattr(tiny, "context_length", tokens - 1)
    found = builder(tiny, meta_init).prepare(ask, hits, None)
    assert found.request.prompt == LAB_PROMPTS.context_text(three[:1]) + "Once upon"
    assert [(note.policy, note.passage_ids) for note in found.plan.notes] == [("drop", (three[1].id,))]
