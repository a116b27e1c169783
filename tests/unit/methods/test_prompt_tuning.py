"""The method `prompt-tuning`: its plan, its prompt's room and likelihood, and what it lacks is said before anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regrad.data.passages import Passage
from regrad.errors import MethodError, PromptTooLong
from regrad.methods.base import Evidence, Method, NoAtoms, PassageCosts, Plan, open_question
from regrad.methods.policies import PromptFitter
from regrad.methods.reading import LikelihoodReader
from regrad.models.loading import LanguageModel
from tests.tools.adapting import drawn_soft_prompt
from tests.tools.evaluating import method_settings
from tests.tools.refusals import refused, refused_settings
from tests.unit.models.test_virtual_tokens import by_embeddings

VIRTUAL, ANSWER = 30, 5


@pytest.fixture
def tuned(tiny: LanguageModel, tmp_path: Path) -> Method:
    drawn_soft_prompt(tiny, tmp_path / "soft", VIRTUAL)
    opened: Method = method_settings("prompt-tuning", soft_prompt=str(tmp_path / "soft")).open(tiny)
    return opened


def planned(method: Method, passages: list[Passage]) -> Plan:
    (plan,) = method.answer_plans([Evidence(open_question("Who?"), tuple(passages))], NoAtoms())
    return plan


def test_its_prompt_is_rags_behind_the_virtual_tokens(
    tiny: LanguageModel, tuned: Method, passages: list[Passage]
) -> None:
    plan, rag = planned(tuned, passages[:2]), planned(method_settings("rag").open(tiny), passages[:2])
    assert plan.prompt.text(tiny.config.prompts) == rag.prompt.text(tiny.config.prompts)
    assert (len(plan.prompt.virtual), rag.prompt.virtual, plan.updates, plan.notes) == (VIRTUAL, (), (), ())
    assert planned(tuned, []).notes[0].policy == "no-passages"


def test_virtual_tokens_take_room_that_passages_lack(
    tiny: LanguageModel, tuned: Method, passages: list[Passage]
) -> None:
    plan, rag = planned(tuned, passages[:2]), planned(method_settings("rag").open(tiny), passages[:2])
    alone = len(tiny.encode_prompt(rag.prompt.text(tiny.config.prompts)))
    tight = PromptFitter(tiny, tiny.config.prompts, "drop", alone + ANSWER)
    assert tight.fitted(rag, ANSWER).plan.notes == ()
    fitted = tight.fitted(plan, ANSWER)
    assert [note.policy for note in fitted.plan.notes] == ["drop"]
    assert fitted.plan.prompt.passages == tuple(passages[:1])
    assert list(fitted.ids) == [*plan.prompt.virtual, *tiny.encode_prompt(fitted.text)]
    exact = PromptFitter(tiny, tiny.config.prompts, "fail", VIRTUAL + alone + ANSWER)
    assert len(exact.fitted(plan, ANSWER).ids) == VIRTUAL + alone
    with refused(PromptTooLong, prompt_tokens=VIRTUAL + alone):
        exact.fitted(plan, ANSWER + 1)


@torch.no_grad()
def test_an_answer_is_as_likely_as_behind_the_embeddings(
    tiny: LanguageModel, tuned: Method, passages: list[Passage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tuned, passages[:1])
    prompts = tiny.config.prompts
    values = drawn_soft_prompt(tiny, tmp_path / "again", VIRTUAL).values
    for shown in (plan.prompt, plan.prompt.shortened(0)):
        prompt = tiny.encode_prompt(shown.text(prompts))
        answer = [*tiny.encode(prompts.reply("London")), *tiny.ending]
        scores = by_embeddings(tiny, values, [*prompt, *answer]).log_softmax(-1)
        start = VIRTUAL + len(prompt)
        expected = sum(float(scores[start + n - 1, token]) for n, token in enumerate(answer))
        found = LikelihoodReader(tiny, 4096).log_likelihoods([plan], ["London"])
        assert float(found[0]) == pytest.approx(expected, abs=1e-3)
        # The second time the passage has no room, as the virtual tokens count.
        monkeypatch.setattr(tiny, "context_length", start + len(answer) - 1)


def test_what_it_lacks_is_said_from_its_settings_and_card(tiny: LanguageModel, tmp_path: Path) -> None:
    with refused(MethodError, "setting_missing", setting="soft_prompt"):
        method_settings("prompt-tuning").check()
    with refused(MethodError, "soft_prompt_not_found", uri=str(tmp_path / "none")):
        method_settings("prompt-tuning", soft_prompt=str(tmp_path / "none")).check()
    with refused_settings("foreign_setting"):
        method_settings("prompt-tuning", adapter=str(tmp_path))
    drawn_soft_prompt(tiny, tmp_path / "soft")
    settings: Any = method_settings("prompt-tuning", soft_prompt=str(tmp_path / "soft"))
    settings.check()
    assert dict(settings.artefacts.others) == {"soft_prompt": str(tmp_path / "soft")}
    assert settings.costs() == PassageCosts(), "not trained on passages"
    assert method_settings("prompt-tuning").costs() == PassageCosts()
    assert settings.info.retrieves
