"""The generator's deployment in this process: every kind of method is answered as it is planned."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import ray

from regrad.evaluation.config import EvalBatchConfig
from regrad.evaluation.generation import Generator
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.methods.base import Evidence, open_question
from regrad.models.loading import LanguageModel
from regrad.retrieval.base import Hit
from serve_app.generator import GeneratorDeployment
from serve_app.messages import Ask, Release, Retrieved, Sampling
from serve_app.offers import offers_of
from tests.unit.adapting import adapter_bank
from tests.unit.test_offers import config

TOKENS = 8


@pytest.mark.usefixtures("recorded")
def test_methods_that_train_or_read_adapters_are_answered_like_any_other(
    tiny: LanguageModel, meta_init: MetaInit, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [])
    meta_init.save(tmp_path / "meta-init")
    known = adapter_bank(tiny, world, str(tmp_path / "adapters"))[2]
    methods: list[Any] = ["rag", {"name": "tta", "lr": 1e-2}, {"name": "prag", "bank": str(tmp_path / "adapters")}]
    served = config(meta_init=str(tmp_path / "meta-init"), methods=methods)
    release = Release("main", served.meta_init, "b", 1, meta_init.fingerprint)
    found = Retrieved(tuple(Hit(passage, 1.0) for passage in known[:2]), 0.0)
    generator, alone = GeneratorDeployment(served), Generator(tiny, EvalBatchConfig(rows=1))
    evidence = Evidence(open_question("Who?"), tuple(known[:2]))
    answers = set()
    for name, offer in offers_of(served).items():
        ask = Ask("Who?", name, sampling=Sampling(TOKENS))
        answered = asyncio.run(generator.answer(ask, found, None, release))
        method = offer.settings.open(tiny)
        (plan,) = method.plan([evidence], method.open_atoms())
        (expected,) = alone.answers([plan.prompt.text(tiny.config.prompts)], [plan.updates], TOKENS)
        assert answered.text == expected.text, name
        assert [use.tier for use in answered.uses] == (["disk", "disk"] if name == "prag" else []), name
        answers.add(answered.text)
    assert len(answers) > 1
