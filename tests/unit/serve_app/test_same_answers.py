"""Evaluation and server make the same of a question: the same prompt, the same update, the same answer."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regrad.bank.maintenance import delete
from regrad.bank.reader import BankReader
from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.data.question_sets import read_questions
from regrad.evaluation.config import EvalBatchConfig
from regrad.evaluation.plan import PlannedCell, make_plan
from regrad.evaluation.records import Record
from regrad.evaluation.runner import CellRunner, Generator
from regrad.inference.rows import DecodingRequest
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.methods import registry
from regrad.methods.base import Atoms, Evidence, Method, Plan
from regrad.methods.demonstrations import DemonstrationPool
from regrad.methods.one_by_one import ReplyReader
from regrad.methods.policies import PromptFitter
from regrad.methods.regrad import BoundMetaInit
from regrad.models.loading import LanguageModel
from regrad.retrieval.hits import Hit
from regrad.settings import parse_settings
from serve_app.config import ServeConfig
from serve_app.evidence import BankLoaderDeployment
from serve_app.messages import Ask, GradientSum, Release, Retrieved, Sampling
from serve_app.methods import (
    LoadedAtoms,
    Prepared,
    RequestBuilder,
    demonstrations_of,
    offers_of,
    open_own,
    searches_demonstrations,
)
from tests.tools.adapting import (
    adapter_bank,
    drawn_soft_prompt,
    generated_bank,
    static_lora,
    untrained_predictor,
    untrained_translator,
)
from tests.tools.decoded import recomputed
from tests.tools.evaluating import gradient_bank, method_settings, settings

K, TOKENS = 3, 8
BF16 = 2.0**-8
"""The largest relative error of a number that is rounded to bf16: a server's sums travel in it."""


@pytest.fixture
def folder(tmp_path: Path, tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage]) -> Path:
    """A MetaInit, a bank that lacks every third passage, questions with three passages each, and solved ones."""
    meta_init.save(tmp_path / "meta-init")
    gradient_bank(tiny, meta_init, [p for n, p in enumerate(passages[:9]) if n % 3 != 1], str(tmp_path / "bank"))
    write_questions(tmp_path, [passages[start : start + 3] for start in (0, 3, 6)])
    solved = [
        {"id": f"d{n}", "question": question, "answers": [f"t{n}"]}
        | {"passages": [{"id": p.id, "title": p.title, "text": p.text} for p in passages[9 : 9 + n]]}
        for n, question in enumerate(["Who taught one?", "Who taught two?", f"Who employs {passages[3].title}, then?"])
    ]
    (tmp_path / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in solved))
    return tmp_path


def write_questions(folder: Path, groups: Sequence[Sequence[Passage]]) -> None:
    """A question for each group of passages, which come with it."""
    rows = [
        {"id": f"q{n}", "question": f"Who employs {group[0].title}?", "answers": ["nobody"]}
        | {"passages": [{"id": p.id, "title": p.title, "text": p.text} for p in group]}
        for n, group in enumerate(groups)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluated(folder: Path, lm: LanguageModel, method: dict[str, Any]) -> tuple[PlannedCell, list[Record], list[Plan]]:
    """What an evaluation of one method makes of the questions."""
    one = {"name": "people", "path": str(folder / "questions.jsonl"), "passages": {"source": "given"}}
    one["demonstrations"] = str(folder / "solved.jsonl")
    alone = {"rows": 1, "questions": 1}  # as a server gets them: a batch rounds in another way
    config = settings(folder, lm.config, sets=[one], methods=[method], k=[K], max_new_tokens=TOKENS, batch=alone)
    (cell,) = make_plan(config)
    opened = cell.method.open(lm)
    atoms, plans = opened.open_atoms(), list[Plan]()
    for question in read_questions(cell.set):
        shown = cell.demonstrations.of.get(question.id, ())
        plans += opened.plan([Evidence(question, question.passages[:K], (), shown)], atoms)
    return cell, CellRunner(lm, config).run(cell).records, plans


class Served:
    """A server's bank loader and generator, without the calls between them."""

    def __init__(self, folder: Path, lm: LanguageModel, meta_init: MetaInit, method: Any, version: int = 1) -> None:
        places = {name: str(folder / name) for name in ("meta_init", "bank", "index")}
        places |= {"meta_init": str(folder / "meta-init"), "demonstrations": str(folder / "solved.jsonl")}
        config = parse_settings(ServeConfig, {**places, "methods": [method]}, "test")
        self._offers, self._loader = offers_of(config), BankLoaderDeployment(config)
        (self._method,) = self._offers
        self._release = Release("main", places["meta_init"], places["bank"], version, meta_init.fingerprint)
        self._builder = RequestBuilder(
            BoundMetaInit(lm, meta_init),
            PromptFitter(lm, lm.config.prompts, config.on_overflow),
            self._offers,
            open_own(self._offers, lm),
            DemonstrationPool(demonstrations_of(config), searches_demonstrations(config)),
            ReplyReader(lm),
        )

    @property
    def method(self) -> Method:
        """The one that is offered."""
        return self._builder.opened(Ask("", self._method)).method

    def prepared(self, question: str, passages: Sequence[Passage]) -> tuple[Prepared, GradientSum | None]:
        """A request as it is decoded, and what the bank loader gave for it."""
        ask = Ask(question, self._method, sampling=Sampling(TOKENS))
        routed = self._offers[self._method].routed(ask, self._release)
        found = Retrieved(tuple(Hit(passage, 1.0) for passage in passages), 0.0) if routed.retrieves else None
        (gradients,) = asyncio.run(self._loader.load([routed], [found]))
        return self._builder.prepare(ask, found, gradients, self._builder.demonstrations(ask)), gradients


def assert_same_update(found: Tensor, expected: Tensor, phi0: Tensor, rounded: bool) -> None:
    if rounded:
        assert (found - expected).norm() <= BF16 * (expected - phi0).norm()
    else:
        assert torch.equal(found, expected)


PREDICTED = {"adapter": "FOLDER/lora", "predictor": "FOLDER/predictor"}
NEAREST = {"demonstrations": 2, "which_demonstrations": "nearest"}
METHODS: list[dict[str, Any]] = [
    *({"name": name} for name in ("direct", "rag", "pe-rag", "regrad", "regrad+icl", "regrad-online", "tta", "ttarag")),
    *({"name": name, "method": "regrad", "weighting": name} for name in ("mean", "first", "orthogonal")),
    *({"name": policy, "method": "regrad", "on_missing": policy} for policy in ("fewer", "rag")),
    {"name": "half", "method": "regrad+icl", "gamma": 0.5, "prompt_style": "pe", "demonstrations": 2},
    {"name": "few-shot", "method": "rag", "demonstrations": 1},
    {"name": "weights alone", "method": "tta", "in_prompt": False, "lr": 1e-2},
    *({"name": name, "adapter": "FOLDER/lora"} for name in ("cpt", "instruction-cpt", "ft-direct", "ft-rag")),
    *({"name": name, "adapter": "FOLDER/lora", "bank": "FOLDER/adapters"} for name in ("prag-warm", "ft-prag")),
    *({"name": name, "adapter": "FOLDER/lora", "bank": "FOLDER/adapters"} for name in ("d-prag", "d-prag+icl")),
    {"name": "prag", "bank": "FOLDER/adapters"},
    {"name": "prag+icl", "bank": "FOLDER/adapters", "weighting": "mean", "on_missing": "rag"},
    {"name": "rag-gd-base", "adapter": "FOLDER/lora", "demonstrations": 2},
    {"name": "tt-sgd", "adapter": "FOLDER/lora", "demonstrations": 2, "steps": {"lr": 0.1}},
    *({"name": name, **PREDICTED, "demonstrations": 2} for name in ("rag-gd", "rag-gd-shuffled")),
    {"name": "rag-gd-constant", **PREDICTED},
    {"name": "hypertuning", **PREDICTED, "demonstrations": 2},
    {"name": "prompt-tuning", "soft_prompt": "FOLDER/soft-prompt", "demonstrations": 1},
    *({"name": name, "translator": "FOLDER/translator"} for name in ("dyprag", "dyprag+icl")),
    {"name": "released", "method": "dyprag", "translator": "FOLDER/translator", "join": "released"},
    {"name": "the nearest", "method": "rag", **NEAREST},
    {"name": "steps on the nearest", "method": "tt-sgd", "adapter": "FOLDER/lora", **NEAREST},
    *({"name": f"{name}, nearest", "method": name, **PREDICTED, **NEAREST} for name in ("rag-gd", "hypertuning")),
    {"name": "stored", "method": "dyprag", "translator": "FOLDER/translator", "bank": "FOLDER/generated"},
    {"name": "shown, too", "method": "rag-gd", **PREDICTED, "demonstrations": 2, "in_prompt": True},
]
"""With all else at its default; a method that applies gradients gets MetaInit and bank from its place."""


def test_every_method_is_asked_in_both() -> None:
    assert {method.get("method", method["name"]) for method in METHODS} == set(registry.METHODS)


@pytest.mark.slow
@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_a_method_gives_the_same_in_an_evaluation_and_in_a_server(
    folder: Path, tiny: LanguageModel, meta_init: MetaInit, world: World, passages: list[Passage], method: Any
) -> None:
    served = json.loads(json.dumps(method).replace("FOLDER", str(folder)))
    places = {"meta_init": f"{folder}/meta-init", "bank": f"{folder}/bank"}
    family = type(method_settings(**served))
    own = {key: place for key, place in places.items() if family.FOLLOWS_RELEASE and key in family.model_fields}
    static = static_lora(tiny, 2, folder / "lora") if "adapter" in method else None
    if static is not None and "predictor" in method:
        objective = "answers" if "hypertuning" in (method["name"], method.get("method")) else "steps"
        untrained_predictor(tiny, static, folder / "predictor", objective=objective)
    made = untrained_translator(tiny, folder / "translator") if "translator" in method else None
    if "soft_prompt" in method:
        drawn_soft_prompt(tiny, folder / "soft-prompt")
    if "bank" in method:
        known = (
            generated_bank(tiny, made, served["bank"], passages[1:4])
            if made
            else adapter_bank(tiny, world, served["bank"], static, layers="all")[2]
        )
        write_questions(folder, [[known[0], passages[0]], [known[1]], [*known]])
    cell, records, plans = evaluated(folder, tiny, served | own)
    server, generator = Served(folder, tiny, meta_init, served), Generator(tiny, EvalBatchConfig(rows=1))
    for question, record, plan in zip(read_questions(cell.set), records, plans, strict=True):
        prepared, gradients = server.prepared(question.question, question.passages[: cell.k])
        assert prepared.request.prompt == plan.prompt.text(tiny.config.prompts)
        assert prepared.plan.notes == plan.notes
        assert record.note == "; ".join(map(str, plan.notes))
        for found, expected in zip(prepared.request.updates, plan.updates, strict=True):
            assert found.subspace == expected.subspace
            assert_same_update(found.vector, expected.vector, meta_init.phi0, rounded=gradients is not None)
        virtual, request = plan.prompt.virtual, prepared.request
        assert (len(virtual) > 0) == ("soft_prompt" in method)
        assert list(request.ids) == [*virtual, *tiny.encode_prompt(request.prompt)]
        assert record.prompt_tokens == len(request.ids)
        (answer,) = generator.answers([DecodingRequest(request.prompt, request.updates, TOKENS, ids=request.ids)])
        assert answer.text == record.raw


@pytest.mark.slow
@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("name", ["regrad", "regrad+icl", "regrad-online"])
def test_updates_that_act_on_the_answer_do_so_in_both(
    folder: Path, tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], name: str
) -> None:
    activated = replace(meta_init, acts_on="answer")
    activated.save(folder / "meta-init")
    shutil.rmtree(folder / "bank")
    gradient_bank(tiny, activated, passages[:9], str(folder / "bank"))
    places = {"meta_init": f"{folder}/meta-init"} | ({"bank": f"{folder}/bank"} if name != "regrad-online" else {})
    cell, records, _ = evaluated(folder, tiny, {"name": name} | places)
    server, stop = Served(folder, tiny, activated, {"name": name}), tiny.config.prompts.stop
    for question, record in zip(read_questions(cell.set), records, strict=True):
        request = server.prepared(question.question, question.passages[: cell.k])[0].request
        assert [each.acts_on for each in request.updates] == ["answer"]
        assert recomputed(tiny, request.prompt, request.updates, TOKENS, stop=stop) == record.raw


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("name", ["rag", "regrad+icl"])
def test_a_prompt_that_is_too_long_loses_the_same_passages_in_both_and_no_gradient(
    folder: Path, tiny: LanguageModel, meta_init: MetaInit, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    places = {"meta_init": f"{folder}/meta-init", "bank": f"{folder}/bank"} if name == "regrad+icl" else {}
    _, whole, plans = evaluated(folder, tiny, {"name": name} | places)
    prompts = [plan.prompt.shortened(2).text(tiny.config.prompts) for plan in plans]
    limit = max(len(tiny.encode_prompt(prompt)) for prompt in prompts) + TOKENS
    assert limit < min(record.prompt_tokens for record in whole) + TOKENS
    monkeypatch.setattr(tiny, "context_length", limit)
    cell, records, _ = evaluated(folder, tiny, {"name": name} | places)
    server, generator = Served(folder, tiny, meta_init, {"name": name}), Generator(tiny, EvalBatchConfig(rows=1))
    rows = zip(read_questions(cell.set), records, plans, prompts, strict=True)
    for question, record, plan, prompt in rows:
        prepared, _ = server.prepared(question.question, question.passages)
        assert prepared.request.prompt == prompt
        assert record.prompt_tokens == len(tiny.encode_prompt(prompt))
        assert record.note == "; ".join(map(str, prepared.plan.notes))
        assert (prepared.plan.notes[-1].policy, prepared.plan.notes[-1].passage_ids) == (
            "drop",
            (question.passages[2].id,),
        )
        for found, expected in zip(prepared.request.updates, plan.updates, strict=True):
            assert_same_update(found.vector, expected.vector, meta_init.phi0, rounded=True)
        assert list(prepared.request.ids) == tiny.encode_prompt(prompt)
        (answer,) = generator.answers([DecodingRequest(prompt, prepared.request.updates, TOKENS)])
        assert answer.text == record.raw


@pytest.mark.usefixtures("recorded")
def test_by_default_what_a_bank_lacks_is_computed_in_both_and_noted(
    folder: Path, tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage]
) -> None:
    """Bit for bit, but for the sum's way in bf16: with the loader's sum in float32 the updates are equal."""
    method = {"name": "regrad"}
    places = {"meta_init": f"{folder}/meta-init", "bank": f"{folder}/bank"}
    _, records, plans = evaluated(folder, tiny, method | places)
    server = Served(folder, tiny, meta_init, method)
    for start, plan, record in zip((0, 3, 6), plans, records, strict=True):
        prepared, gradients = server.prepared("Who?", passages[start : start + 3])
        assert gradients is not None
        atoms = LoadedAtoms(gradients, meta_init.fingerprint)
        had = [place for place, use in enumerate(gradients.uses) if not use.missing]
        assert had == [0, 2]
        exact = BankReader(places["bank"]).sum([passages[start + place] for place in had])
        assert atoms.atoms.total is not None and torch.equal(atoms.atoms.total, exact.to(torch.bfloat16).float())
        (again,) = server.method.plan([plan.prompt.evidence], Given(replace(atoms.atoms, total=exact)))
        assert torch.equal(again.updates[0].vector, plan.updates[0].vector)
        assert [use.tier for use in prepared.plan.uses] == ["disk", "online", "disk"]
        assert record.note == f"online: no gradient for passage '{passages[start + 1].id}': it is not in this version"


class Given:
    """A provider of one question's atoms."""

    def __init__(self, atoms: Atoms) -> None:
        self._atoms = atoms

    def find(self, evidences: Sequence[Evidence], parts: bool) -> list[Atoms]:
        return [self._atoms]


@pytest.mark.usefixtures("recorded")
def test_a_deleted_passage_is_computed_in_neither(
    folder: Path, tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage]
) -> None:
    delete(str(folder / "bank"), [passages[0].id])
    method = {"name": "regrad+icl"}
    places = {"meta_init": f"{folder}/meta-init", "bank": f"{folder}/bank"}
    _, _, plans = evaluated(folder, tiny, method | places)
    prepared, _ = Served(folder, tiny, meta_init, method, version=2).prepared("Who?", passages[:3])
    for plan in (plans[0], prepared.plan):
        assert [use.tier for use in plan.uses] == [Tier.MISSING, Tier.ONLINE, Tier.DISK]
        assert [note.policy for note in plan.notes] == ["online", "fewer"]
        assert passages[0].text not in plan.prompt.text(tiny.config.prompts)
