"""The table of methods, and what each makes of a question: against the same computed in the plainest way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.func import functional_call

from regrad.bank.reader import BankReader, Fetched
from regrad.data.passages import Passage
from regrad.errors import (
    AtomDamaged,
    AtomNotFound,
    ConfigError,
    FingerprintMismatch,
    MetaInitError,
    MethodError,
    StorageError,
)
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.methods.base import AtomProvider, Evidence, Method, MethodSettings, Plan, open_question
from regrad.methods.registry import METHODS, MethodConfig
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace
from regrad.prompts import PromptFormat
from tests.tools.adapting import adapter_bank, static_lora
from tests.tools.evaluating import gradient_bank
from tests.tools.evaluating import method_settings as settings
from tests.tools.refusals import refused, refused_settings

PASSAGES = [Passage("best", "Best", "first"), Passage("next", "Next", "second")]


class Blind(Method):
    """What all methods have in common."""

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        return []


def test_only_some_methods_put_passages_in_the_prompt() -> None:
    question = Evidence(open_question("Who?"), tuple(PASSAGES))
    prompts = {name: Blind(settings(name)).prompt(question).text(PromptFormat()) for name in METHODS}
    read = {name for name, prompt in prompts.items() if "first" in prompt}
    assert read == {name for name, method in METHODS.items() if method.passages_in_prompt}
    predicted = {"rag-gd", "rag-gd-base", "rag-gd-constant", "rag-gd-shuffled", "hypertuning", "tt-sgd", "dyprag+icl"}
    assert read >= predicted | {"rag", "pe-rag", "ft-rag", "prag+icl", "d-prag+icl", "regrad+icl", "tta", "ttarag"}
    adapted = {"cpt", "instruction-cpt", "ft-direct", "prag", "prag-warm", "ft-prag", "d-prag", "dyprag"}
    assert not read & (adapted | {"direct", "regrad", "regrad-online"})
    assert {prompts[name] for name in METHODS if name not in read} == {"Question: Who?\nAnswer:"}
    assert prompts["rag"].index("second") < prompts["rag"].index("first") < prompts["rag"].index("Who?")


def test_which_methods_retrieve_and_which_apply_gradients() -> None:
    blind, gradients = {"direct", "cpt", "instruction-cpt", "ft-direct"}, {"regrad", "regrad+icl", "regrad-online"}
    assert blind <= {name for name, method in METHODS.items() if not method.retrieves}
    assert gradients <= {name for name, method in METHODS.items() if method.applies_gradients}
    others = {"rag", "ft-rag", "prag", "d-prag", "tta", "ttarag", "tt-sgd", "rag-gd", "dyprag"}
    assert all(METHODS[name].retrieves for name in others | gradients)
    assert not any(METHODS[name].applies_gradients for name in others | blind)


def test_an_unknown_method_names_the_nearest() -> None:
    with refused(MethodError, "unknown_name", name="regard"):
        METHODS.check("regard")


def asked(passages: Sequence[Passage], *scores: float) -> Evidence:
    return Evidence(open_question("Who?"), tuple(passages), scores)


class Planned:
    """A method with its own atoms, and its plans side by side."""

    def __init__(self, config: MethodSettings, lm: LanguageModel) -> None:
        config.check()
        self._method = config.open(lm)
        self._atoms = self._method.open_atoms()

    def __call__(self, evidences: Sequence[Evidence]) -> Planned:
        plans = self._method.plan(evidences, self._atoms)
        self.together = [{each.subspace: each.vector for each in plan.updates} for plan in plans]
        self.updates = [next(iter(vectors.values()), None) for vectors in self.together]
        self.notes = ["; ".join(map(str, plan.notes)) for plan in plans]
        self.bytes_fetched = [plan.bytes_fetched for plan in plans]
        return self


@pytest.fixture
def regrad(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], tmp_path: Path
) -> tuple[MethodSettings, dict[str, Tensor]]:
    """A method over a bank of four passages, and their gradients."""
    atoms = gradient_bank(tiny, meta_init, passages[:4], str(tmp_path / "bank"))
    meta_init.save(tmp_path / "meta-init")
    return settings("regrad", meta_init=str(tmp_path / "meta-init"), bank=str(tmp_path / "bank"), gamma=0.5), atoms


def test_regrad_sums_gradients_of_the_bank(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], regrad: tuple[MethodSettings, dict[str, Tensor]]
) -> None:
    config, atoms = regrad
    made = Planned(config, tiny)([asked(passages[:2]), asked([passages[3]])])
    alpha = tiny.subspace.per_tensor(meta_init.step_sizes)
    expected = meta_init.phi0 - 0.5 * alpha * (atoms[passages[0].id] + atoms[passages[1].id])
    assert made.updates[0] is not None
    torch.testing.assert_close(made.updates[0], expected, rtol=1e-5, atol=1e-7)
    assert made.bytes_fetched == [8 * tiny.subspace.size, 4 * tiny.subspace.size]
    assert made.notes == ["", ""]


def test_a_weighting_is_chosen_by_name_and_sees_the_scores(
    tiny: LanguageModel,
    meta_init: MetaInit,
    passages: list[Passage],
    regrad: tuple[MethodSettings, dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from regrad.gradients.merging import MERGES

    config, _ = regrad
    seen: list[Sequence[float]] = []
    monkeypatch.setitem(MERGES, "first", lambda rows, scores: seen.append(list(scores)) or rows[0])
    mean = Planned(config.model_copy(update={"weighting": "mean"}), tiny)([asked(passages[:2])]).updates[0]
    half = Planned(config.model_copy(update={"gamma": 0.25}), tiny)([asked(passages[:2])]).updates[0]
    assert mean is not None and half is not None
    torch.testing.assert_close(mean, half, rtol=1e-5, atol=1e-7)
    updates = Planned(config.model_copy(update={"weighting": "first", "on_missing": "fewer"}), tiny)
    updates([asked([passages[2], passages[9], passages[1]], 3.0, 2.0, 1.0), asked(passages[:2])])
    assert seen == [[3.0, 1.0], [1.0, 1.0]], "the score of a passage without an atom is left out with it"
    with refused(MethodError, "scores_do_not_match", passages=3, scores=2):
        updates([asked(passages[:3], 2.0, 1.0)])
    with refused_settings("unknown_weighting", "method.weighting", near="sum"):
        settings("regrad", weighting="summ")


def test_a_passage_without_an_atom_is_left_out_computed_or_an_error(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], regrad: tuple[MethodSettings, dict[str, Tensor]]
) -> None:
    config, _ = regrad
    question = asked([passages[8], passages[1]])
    few = config.model_copy(update={"on_missing": "fewer"})
    fewer = Planned(few, tiny)([question, asked([passages[8]])])
    why = f"no gradient for passage '{passages[8].id}': it is not in this version"
    assert fewer.notes[0] == f"fewer: {why}"
    one = Planned(config, tiny)([asked([passages[1]])]).updates[0]
    assert fewer.updates[0] is not None and one is not None and fewer.updates[1] is None
    assert torch.equal(fewer.updates[0], one)
    computed = Planned(config, tiny)([question])
    online = settings("o", method="regrad-online", meta_init=config.meta_init, gamma=0.5)
    now = Planned(online, tiny)([question, question])
    assert computed.updates[0] is not None and now.updates[0] is not None
    torch.testing.assert_close(computed.updates[0], now.updates[0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(computed.updates[0], one)
    assert (computed.notes, now.notes, now.bytes_fetched) == ([f"online: {why}"], ["", ""], [0, 0])
    with refused(AtomNotFound, bank_kind="gradient", passage_ids=[passages[8].id], problem="it is not in this version"):
        Planned(config.model_copy(update={"on_missing": "fail"}), tiny)([question])


def test_a_bank_with_nothing_for_the_first_questions_is_an_error(
    tiny: LanguageModel, passages: list[Passage], regrad: tuple[MethodSettings, dict[str, Tensor]]
) -> None:
    few = regrad[0].model_copy(update={"on_missing": "fewer"})
    with refused(MethodError, "bank_of_other_passages", passages=3):
        Planned(few, tiny)([asked(passages[7:9]), asked([passages[9]])])
    updates = Planned(few, tiny)
    assert updates([asked(())]).notes == [""]
    with refused(MethodError, "bank_of_other_passages", passages=1):
        updates([asked([passages[9]])])
    assert updates([asked([passages[9], passages[0]])]).notes != [""]
    assert updates([asked([passages[9]])]).notes != [""], "after one that is there, others may be missing"


@pytest.mark.parametrize("policy", ["fewer", "online", "fail"])
@pytest.mark.parametrize("error", [StorageError, AtomDamaged])
def test_an_atom_that_is_late_or_damaged_is_an_error_whatever_is_done_about_missing_ones(
    tiny: LanguageModel,
    passages: list[Passage],
    regrad: tuple[MethodSettings, dict[str, Tensor]],
    policy: str,
    error: type[StorageError | AtomDamaged],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, _ = regrad
    updates = Planned(config.model_copy(update={"on_missing": policy}), tiny)
    assert updates([asked(passages[:2])]).notes == [""]
    real = BankReader.fetch

    def late(self: BankReader, wanted: Sequence[str | Passage], seconds: float | None = None) -> list[Fetched]:
        return [*real(self, wanted[:-1], seconds), Fetched(None, problem="not in time", error=error)]

    monkeypatch.setattr(BankReader, "fetch", late)
    with refused(error, "unreadable_atom", passage_id=passages[1].id, problem="not in time"):
        updates([asked(passages[:2])])


def logits(lm: LanguageModel, updates: Mapping[Subspace, Tensor]) -> Tensor:
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), lm.applied(updates):
        return lm.model(input_ids=ids).logits  # type: ignore[no-any-return]


def dense_logits(lm: LanguageModel, parts: Sequence[tuple[Subspace, Tensor]]) -> Tensor:
    """With the sum of all products added to the weights."""
    weights: dict[str, Tensor] = {}
    for subspace, flat in parts:
        tensors = subspace.unflatten(flat)
        for name, _, _ in subspace.modules:
            before = weights.get(f"{name}.weight", lm.model.get_submodule(name).weight)
            weights[f"{name}.weight"] = before + subspace.scaling * tensors[f"{name}.B"] @ tensors[f"{name}.A"]
    with torch.no_grad():
        return functional_call(lm.model, weights, kwargs={"input_ids": torch.arange(3, 20)[None]}).logits  # type: ignore


def test_a_static_lora_of_any_rank_and_scale_is_applied_in_its_own_subspace(
    tiny: LanguageModel, tmp_path: Path
) -> None:
    lora = static_lora(tiny, 5, tmp_path / "a")
    for name in ("cpt", "instruction-cpt", "ft-direct", "ft-rag"):
        made = Planned(settings(name, adapter=str(tmp_path / "a")), tiny)([asked(()), asked(PASSAGES)])
        assert made.updates[0] is not None
        torch.testing.assert_close(
            logits(tiny, made.together[0]), dense_logits(tiny, [(lora.subspace, lora.values)]), rtol=1e-4, atol=1e-5
        )


def test_prag_is_the_sum_of_the_products_of_trained_adapters(tiny: LanguageModel, world: World, tmp_path: Path) -> None:
    subspace, values, known = adapter_bank(tiny, world, str(tmp_path / "bank"))
    for name in ("prag", "prag+icl"):
        updates = Planned(settings(name, bank=str(tmp_path / "bank")), tiny)
        made = updates([asked(known[:2]), asked([*known[2:], PASSAGES[0]]), asked([PASSAGES[0]])])
        assert made.updates[0] is not None
        expected = dense_logits(tiny, [(subspace, values[passage.id]) for passage in known[:2]])
        torch.testing.assert_close(logits(tiny, made.together[0]), expected, rtol=1e-4, atol=1e-5)
        assert (expected - dense_logits(tiny, [])).abs().max() > 1e-2
        assert made.bytes_fetched == [8 * subspace.size, 4 * subspace.size, 0]
        assert made.notes[1:] == ["fewer: no adapter for passage 'best': it is not in this version"] * 2
        assert made.updates[2] is None
        assert len(updates([asked(known)]).together[0]) == 1, "the rank is that of all of them, not the model's"


def test_prag_on_all_blocks_leaves_the_models_own_subspace_as_it_is(
    tiny: LanguageModel, world: World, tmp_path: Path
) -> None:
    subspace, values, known = adapter_bank(tiny, world, str(tmp_path / "bank"), layers="all")
    assert len(subspace.modules) == 2 * len(tiny.subspace.modules)
    made = Planned(settings("prag", bank=str(tmp_path / "bank")), tiny)([asked(known)])
    expected = dense_logits(tiny, [(subspace, values[passage.id]) for passage in known])
    torch.testing.assert_close(logits(tiny, made.together[0]), expected, rtol=1e-4, atol=1e-5)


def test_the_mean_of_adapters_gives_each_its_share(tiny: LanguageModel, world: World, tmp_path: Path) -> None:
    subspace, values, known = adapter_bank(tiny, world, str(tmp_path / "bank"))
    config = settings("prag", bank=str(tmp_path / "bank"), weighting="mean")
    config.check()
    made = Planned(config, tiny)([asked(known[:2])])
    assert made.updates[0] is not None
    halves = Subspace(subspace.modules, subspace.rank, subspace.scaling / 2)
    expected = dense_logits(tiny, [(halves, values[passage.id]) for passage in known[:2]])
    torch.testing.assert_close(logits(tiny, made.together[0]), expected, rtol=1e-4, atol=1e-5)
    wrong = {"key": "method.weighting", "problem": "literal_error", "near": ""}
    with refused(ConfigError, "invalid", problems=[wrong]):
        settings("prag", weighting="trimmed")


def test_adapters_on_top_of_a_static_lora_are_joined_with_it_and_with_no_other(
    tiny: LanguageModel, world: World, tmp_path: Path
) -> None:
    lora = static_lora(tiny, 2, tmp_path / "a")
    subspace, values, known = adapter_bank(tiny, world, str(tmp_path / "bank"), lora)
    for name in ("prag-warm", "ft-prag"):
        config = settings(name, bank=str(tmp_path / "bank"), adapter=str(tmp_path / "a"))
        made = Planned(config, tiny)([asked(known[:1]), asked([PASSAGES[0]])])
        assert made.updates[0] is not None and made.updates[1] is not None
        both = dense_logits(tiny, [(lora.subspace, lora.values), (subspace, values[known[0].id])])
        torch.testing.assert_close(logits(tiny, made.together[0]), both, rtol=1e-4, atol=1e-5)
        alone = dense_logits(tiny, [(lora.subspace, lora.values)])
        torch.testing.assert_close(logits(tiny, made.together[1]), alone, rtol=1e-4, atol=1e-5)
    static_lora(tiny, 2, tmp_path / "other", seed=9)
    with refused(MethodError, "adapters_of_another_base", base=f"the adapter at {tmp_path / 'other'}"):
        config.model_copy(update={"adapter": str(tmp_path / "other")}).check()
    with refused(MethodError, "adapters_of_another_base", base="the base model alone"):
        Planned(settings("prag", bank=str(tmp_path / "bank")), tiny)


def test_d_prag_adds_the_mean_of_the_passages_adapters_to_the_tasks_lora(
    tiny: LanguageModel, world: World, tmp_path: Path
) -> None:
    lora = static_lora(tiny, 2, tmp_path / "task")
    subspace, values, known = adapter_bank(tiny, world, str(tmp_path / "bank"), lora)
    halves = Subspace(subspace.modules, subspace.rank, subspace.scaling / 2)
    parts = [(lora.subspace, lora.values), *((halves, values[passage.id]) for passage in known[:2])]
    for name in ("d-prag", "d-prag+icl"):
        config = settings(name, bank=str(tmp_path / "bank"), adapter=str(tmp_path / "task"))
        config.check()
        made = Planned(config, tiny)([asked(known[:2])])
        torch.testing.assert_close(logits(tiny, made.together[0]), dense_logits(tiny, parts), rtol=1e-4, atol=1e-5)


def test_test_time_adaptation_is_exactly_reset(tiny: LanguageModel, passages: list[Passage]) -> None:
    updates = Planned(settings("tta", steps=2, lr=1e-2), tiny)
    fresh = Planned(settings("tta", steps=2, lr=1e-2), tiny)([asked(passages[:2])]).updates[0]
    for start in (4, 6):
        updates([asked(passages[start : start + 2])])
    later = updates([asked(passages[:2])]).updates[0]
    assert fresh is not None and later is not None
    assert torch.equal(fresh, later)
    assert not torch.allclose(fresh, tiny.subspace.initial(0))


def test_test_time_adaptation_may_train_a_lora_of_its_own(tiny: LanguageModel, passages: list[Passage]) -> None:
    own = {"rank": 8, "alpha": 16, "layers": "all", "projections": ["q_proj", "v_proj"]}
    updates = Planned(settings("ttarag", lr=1e-2, subspace=own), tiny)
    (together,) = updates([asked(passages[:4])]).together
    ((subspace, vector),) = together.items()
    assert subspace.rank == 8 and len(subspace.modules) == 8 and vector.numel() == subspace.size
    assert not torch.allclose(logits(tiny, together), dense_logits(tiny, []))
    torch.testing.assert_close(logits(tiny, together), dense_logits(tiny, [(subspace, vector)]), rtol=1e-4, atol=1e-5)


def test_test_time_adaptation_starts_where_its_seed_says_and_may_leave_the_passages_out_of_the_prompt(
    tiny: LanguageModel, passages: list[Passage]
) -> None:
    first, second = (
        Planned(settings("tta", lr=1e-2, seed=seed), tiny)([asked(passages[:2])]).updates[0] for seed in (0, 1)
    )
    assert first is not None and second is not None
    assert not torch.allclose(first, second)
    alone = settings("tta", lr=1e-2, in_prompt=False)
    made = Planned(alone, tiny)([asked(passages[:2])]).updates[0]
    assert made is not None and torch.equal(made, first)
    prompts = [Blind(config).prompt(asked(PASSAGES)).text(PromptFormat()) for config in (alone, settings("tta"))]
    assert ["first" in prompt for prompt in prompts] == [False, True]
    assert alone.info.retrieves
    with refused_settings("foreign_setting", "method"):
        settings("x", method="rag", in_prompt=False)


def test_what_is_missing_is_said_before_a_model_is_loaded(
    tiny: LanguageModel, meta_init: MetaInit, world: World, tmp_path: Path,
    regrad: tuple[MethodSettings, dict[str, Tensor]],
) -> None:  # fmt: skip
    adapter_bank(tiny, world, str(tmp_path / "adapters"))
    nothing = str(tmp_path / "nothing")
    config, _ = regrad
    for name in ("direct", "rag", "pe-rag", "tta"):
        settings(name).check()
    config.check()
    absent: list[tuple[MethodSettings, str]] = [
        (settings("x", method="cpt"), "adapter"),
        (settings("prag"), "bank"),
        (settings("prag-warm", bank=str(tmp_path / "adapters")), "adapter"),
        (settings("regrad"), "meta_init"),
        (settings("regrad", meta_init=config.meta_init), "bank"),
    ]
    for wrong, setting in absent:
        with refused(MethodError, "setting_missing", setting=setting):
            wrong.check()
    with refused(MethodError, "adapter_not_found", uri=nothing):
        settings("ft-rag", adapter=nothing).check()
    with refused(MethodError, "bank_not_found", uri=nothing):
        settings("prag", bank=nothing).check()
    with refused(MethodError, "wrong_bank", expected="adapter", found="gradient"):
        settings("prag", bank=config.bank).check()
    with refused(MetaInitError, "not_found"):
        settings("regrad", meta_init=nothing).check()
    policy = {"key": "method.on_missing", "problem": "literal_error", "near": ""}
    with refused(ConfigError, "invalid", problems=[policy]):
        settings("prag", on_missing="online")
    with refused_settings("unknown_method", "method", near="regrad"):
        settings("regard")
    moved = MetaInit(tiny.config, tiny.identity(), tiny.subspace, meta_init.phi0 + 1, meta_init.step_sizes)
    moved.save(tmp_path / "moved")
    with pytest.raises(FingerprintMismatch):
        config.model_copy(update={"meta_init": str(tmp_path / "moved")}).check()


def test_a_string_is_a_method_that_needs_nothing() -> None:
    assert TypeAdapter(MethodConfig).validate_python("rag") == settings("rag")
    assert settings("our label", method="rag").kind == "rag"
