"""The table of methods, and what each makes of a question: against the same computed in the plainest way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from regrad.bank.manifest import Layout
from regrad.bank.reader import BankReader, Fetched
from regrad.bank.writer import BankWriter
from regrad.data.passages import Passage
from regrad.errors import AtomDamaged, AtomNotFound, FingerprintMismatch, MetaInitError, MethodError, StorageError
from regrad.gradients.extractor import AtomExtractor
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.methods.base import Asked
from regrad.methods.config import MethodConfig
from regrad.methods.prag import adapters_base, adapters_layout
from regrad.methods.registry import METHODS, SERVED, check_method, get_method, method_of, open_updates
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.subspace import Subspace
from regrad.prompts import PromptFormat
from regrad.settings import parse_settings
from regrad.training.lora.adapters import AdapterTrainer, model_for_adapters
from regrad.training.lora.config import AdapterConfig
from regrad.training.lora.lora_artifact import StaticLora
from tests.unit.augmenting import augmented

PASSAGES = [Passage("best", "Best", "first"), Passage("next", "Next", "second")]
ADAPTER = AdapterConfig(lr=1e-2, alpha=4.0)


def test_only_some_methods_put_passages_in_the_prompt() -> None:
    prompts = {name: method.prompt(PromptFormat(), "Who?", PASSAGES) for name, method in METHODS.items()}
    read = {name for name, prompt in prompts.items() if "first" in prompt}
    assert read == {"rag", "pe-rag", "ft-rag", "prag+icl", "regrad+icl", "tta"}
    assert {prompts[name] for name in METHODS if name not in read} == {"Question: Who?\nAnswer:"}
    assert prompts["rag"].index("second") < prompts["rag"].index("first") < prompts["rag"].index("Who?")


def test_which_methods_retrieve_and_which_apply_gradients() -> None:
    blind = {"direct", "cpt", "instruction-cpt", "ft-direct"}
    assert {name for name, method in METHODS.items() if not method.retrieves} == blind
    assert [name for name, m in METHODS.items() if m.applies_gradients] == ["regrad", "regrad+icl", "regrad-online"]
    assert list(SERVED) == ["direct", "rag", "regrad", "regrad+icl", "regrad-online"]


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(MethodError, match=r"unknown method 'regard'; did you mean 'regrad'\?"):
        get_method("regard")
    with pytest.raises(MethodError, match=r"unknown method 'prag'; did you mean 'rag'\? .* are direct, rag, regrad, "):
        get_method("prag", SERVED)


def settings(name: str, **values: Any) -> MethodConfig:
    return parse_settings(MethodConfig, {"name": name, **values}, "test")


def asked(passages: Sequence[Passage], *scores: float) -> Asked:
    return Asked("Who?", tuple(passages), scores)


def gradient_bank(lm: LanguageModel, meta_init: MetaInit, passages: Sequence[Passage], uri: str) -> dict[str, Tensor]:
    layout = Layout(fingerprint=meta_init.fingerprint, codec="float32", subspace=lm.subspace.to_json())
    writer, atoms = BankWriter(uri, layout), {}
    for item in AtomExtractor(lm, meta_init).extract(passages):
        assert item.atom is not None
        atoms[item.passage.id] = item.atom
        writer.add_atom(item.passage.id, item.passage.text_hash, item.atom)
    writer.commit()
    return atoms


@pytest.fixture
def regrad(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], tmp_path: Path
) -> tuple[MethodConfig, dict[str, Tensor]]:
    """A method over a bank of four passages, and their gradients."""
    atoms = gradient_bank(tiny, meta_init, passages[:4], str(tmp_path / "bank"))
    meta_init.save(tmp_path / "meta-init")
    return settings("regrad", meta_init=str(tmp_path / "meta-init"), bank=str(tmp_path / "bank"), gamma=0.5), atoms


def test_regrad_sums_gradients_of_the_bank(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], regrad: tuple[MethodConfig, dict[str, Tensor]]
) -> None:
    config, atoms = regrad
    made = open_updates(config, tiny)([asked(passages[:2]), asked([passages[3]])])
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
    regrad: tuple[MethodConfig, dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from regrad.gradients.merging import MERGES

    config, _ = regrad
    seen: list[Sequence[float]] = []
    monkeypatch.setitem(MERGES, "first", lambda rows, scores: seen.append(list(scores)) or rows[0])
    mean = open_updates(config.model_copy(update={"weighting": "mean"}), tiny)([asked(passages[:2])]).updates[0]
    half = open_updates(config.model_copy(update={"gamma": 0.25}), tiny)([asked(passages[:2])]).updates[0]
    assert mean is not None and half is not None
    torch.testing.assert_close(mean, half, rtol=1e-5, atol=1e-7)
    updates = open_updates(config.model_copy(update={"weighting": "first"}), tiny)
    updates([asked([passages[2], passages[9], passages[1]], 3.0, 2.0, 1.0), asked(passages[:2])])
    assert seen == [[3.0, 1.0], [1.0, 1.0]], "the score of a passage without an atom is left out with it"
    with pytest.raises(MethodError, match="3 passages and 2 scores"):
        updates([asked(passages[:3], 2.0, 1.0)])
    with pytest.raises(MethodError, match=r"unknown weighting 'summ'; did you mean 'sum'\?"):
        check_method(config.model_copy(update={"weighting": "summ"}))


def test_a_passage_without_an_atom_is_left_out_computed_or_an_error(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], regrad: tuple[MethodConfig, dict[str, Tensor]]
) -> None:
    config, _ = regrad
    question = asked([passages[8], passages[1]])
    fewer = open_updates(config, tiny)([question, asked([passages[8]])])
    assert fewer.notes[0] == f"no atom for {passages[8].id}: it is not in this version"
    one = open_updates(config, tiny)([asked([passages[1]])]).updates[0]
    assert fewer.updates[0] is not None and one is not None and fewer.updates[1] is not None
    assert torch.equal(fewer.updates[0], one)
    assert torch.equal(fewer.updates[1], meta_init.phi0)
    computed = open_updates(config.model_copy(update={"on_missing": "online"}), tiny)([question])
    online = settings("o", method="regrad-online", meta_init=config.meta_init, gamma=0.5)
    now = open_updates(online, tiny)([question, question])
    assert computed.updates[0] is not None and now.updates[0] is not None
    torch.testing.assert_close(computed.updates[0], now.updates[0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(computed.updates[0], one)
    assert (computed.notes, now.notes, now.bytes_fetched) == ([""], ["", ""], [0, 0])
    with pytest.raises(AtomNotFound, match="has no atom for passage"):
        open_updates(config.model_copy(update={"on_missing": "fail"}), tiny)([question])


def test_a_bank_with_nothing_for_the_first_questions_is_an_error(
    tiny: LanguageModel, passages: list[Passage], regrad: tuple[MethodConfig, dict[str, Tensor]]
) -> None:
    config, _ = regrad
    with pytest.raises(MethodError, match="the atom of none of the 3 passages of the first questions"):
        open_updates(config, tiny)([asked(passages[7:9]), asked([passages[9]])])
    updates = open_updates(config, tiny)
    assert updates([asked(())]).notes == [""]
    with pytest.raises(MethodError, match="`regrad build`, or set on_missing=online"):
        updates([asked([passages[9]])])
    assert updates([asked([passages[9], passages[0]])]).notes != [""]
    assert updates([asked([passages[9]])]).notes != [""], "after one that is there, others may be missing"


@pytest.mark.parametrize("policy", ["fewer", "online", "fail"])
@pytest.mark.parametrize("error", [StorageError, AtomDamaged])
def test_an_atom_that_is_late_or_damaged_is_an_error_whatever_is_done_about_missing_ones(
    tiny: LanguageModel,
    passages: list[Passage],
    regrad: tuple[MethodConfig, dict[str, Tensor]],
    policy: str,
    error: type[StorageError | AtomDamaged],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, _ = regrad
    updates = open_updates(config.model_copy(update={"on_missing": policy}), tiny)
    assert updates([asked(passages[:2])]).notes == [""]
    real = BankReader.fetch

    def late(self: BankReader, wanted: Sequence[str | Passage], seconds: float | None = None) -> list[Fetched]:
        return [*real(self, wanted[:-1], seconds), Fetched(None, problem="not in time", error=error)]

    monkeypatch.setattr(BankReader, "fetch", late)
    with pytest.raises(error, match=f"has no atom for passage '{passages[1].id}': not in time"):
        updates([asked(passages[:2])])


def static_lora(lm: LanguageModel, rank: int, path: Path, seed: int = 4) -> StaticLora:
    subspace = SubspaceConfig(rank=rank, alpha=3.0 * rank)
    small = load_language_model(lm.config.model_copy(update={"subspace": subspace}), "cpu")
    values = 0.1 * torch.randn(small.subspace.size, generator=torch.Generator().manual_seed(seed))
    lora = StaticLora(small.config, small.identity(), small.subspace, values)
    lora.save(path)
    return lora


def logits(lm: LanguageModel, update: Tensor) -> Tensor:
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), lm.lora.applied(update):
        return lm.model(input_ids=ids).logits  # type: ignore[no-any-return]


def dense_logits(lm: LanguageModel, parts: Sequence[tuple[Subspace, Tensor]]) -> Tensor:
    """With the sum of all products added to the weights."""
    weights = {}
    for name, _, _ in lm.subspace.modules:
        weight = lm.model.get_submodule(name).weight.clone()
        for subspace, flat in parts:
            tensors = subspace.unflatten(flat)
            weight += subspace.scaling * tensors[f"{name}.B"] @ tensors[f"{name}.A"]
        weights[f"{name}.weight"] = weight
    with torch.no_grad():
        return functional_call(lm.model, weights, kwargs={"input_ids": torch.arange(3, 20)[None]}).logits  # type: ignore


def test_a_static_lora_of_another_rank_and_scale_does_the_same_in_the_models_subspace(
    tiny: LanguageModel, tmp_path: Path
) -> None:
    lora = static_lora(tiny, 2, tmp_path / "a")
    for name in ("cpt", "instruction-cpt", "ft-direct", "ft-rag"):
        made = open_updates(settings(name, adapter=str(tmp_path / "a")), tiny)([asked(()), asked(PASSAGES)])
        assert made.updates[0] is not None
        torch.testing.assert_close(
            logits(tiny, made.updates[0]), dense_logits(tiny, [(lora.subspace, lora.values)]), rtol=1e-4, atol=1e-5
        )
    static_lora(tiny, 5, tmp_path / "b")
    with pytest.raises(MethodError, match=r"ranks \[5\] need 5 together, and the model's subspace has rank 4"):
        open_updates(settings("cpt", adapter=str(tmp_path / "b")), tiny)


def adapter_bank(
    lm: LanguageModel, world: World, uri: str, static: StaticLora | None = None
) -> tuple[Subspace, dict[str, Tensor], list[Passage]]:
    """Trained adapters of three passages in a bank."""
    trainer = AdapterTrainer(
        load_language_model(model_for_adapters(lm.config, ADAPTER, static), "cpu"), ADAPTER, static
    )
    items, subspace = augmented(world, 3), trainer.subspace
    base = adapters_base(lm.identity(), static.digest if static else None)
    fingerprint = adapters_layout(subspace, base)
    layout = Layout(kind="adapter", fingerprint=fingerprint, codec="float32", subspace=subspace.to_json())
    writer, values = BankWriter(uri, layout), {}
    for item, adapter in zip(items, trainer.train(items), strict=True):
        assert adapter.values is not None
        values[item.passage.id] = adapter.values
        writer.add_atom(item.passage.id, item.passage.text_hash, adapter.values)
    writer.commit()
    return subspace, values, [item.passage for item in items]


def test_prag_is_the_sum_of_the_products_of_trained_adapters(tiny: LanguageModel, world: World, tmp_path: Path) -> None:
    subspace, values, known = adapter_bank(tiny, world, str(tmp_path / "bank"))
    for name in ("prag", "prag+icl"):
        updates = open_updates(settings(name, bank=str(tmp_path / "bank")), tiny)
        made = updates([asked(known[:2]), asked([*known[2:], PASSAGES[0]]), asked([PASSAGES[0]])])
        assert made.updates[0] is not None
        expected = dense_logits(tiny, [(subspace, values[passage.id]) for passage in known[:2]])
        torch.testing.assert_close(logits(tiny, made.updates[0]), expected, rtol=1e-4, atol=1e-5)
        assert (expected - dense_logits(tiny, [])).abs().max() > 1e-2
        assert made.bytes_fetched == [8 * subspace.size, 4 * subspace.size, 0]
        assert made.notes[1:] == ["no atom for best: it is not in this version"] * 2
        assert made.updates[2] is None
        with pytest.raises(MethodError, match=r"ranks \[2, 2, 2\] need 6 together, .* or ask with fewer passages"):
            updates([asked(known)])


def test_the_mean_of_adapters_gives_each_its_share(tiny: LanguageModel, world: World, tmp_path: Path) -> None:
    subspace, values, known = adapter_bank(tiny, world, str(tmp_path / "bank"))
    config = settings("prag", bank=str(tmp_path / "bank"), weighting="mean")
    check_method(config)
    made = open_updates(config, tiny)([asked(known[:2])])
    assert made.updates[0] is not None
    halves = Subspace(subspace.modules, subspace.rank, subspace.scaling / 2)
    expected = dense_logits(tiny, [(halves, values[passage.id]) for passage in known[:2]])
    torch.testing.assert_close(logits(tiny, made.updates[0]), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(MethodError, match="adapters are merged by sum or mean, not 'trimmed'"):
        check_method(config.model_copy(update={"weighting": "trimmed"}))


def test_adapters_on_top_of_a_static_lora_are_joined_with_it_and_with_no_other(
    tiny: LanguageModel, world: World, tmp_path: Path
) -> None:
    lora = static_lora(tiny, 2, tmp_path / "a")
    subspace, values, known = adapter_bank(tiny, world, str(tmp_path / "bank"), lora)
    for name in ("prag-warm", "ft-prag"):
        config = settings(name, bank=str(tmp_path / "bank"), adapter=str(tmp_path / "a"))
        made = open_updates(config, tiny)([asked(known[:1]), asked([PASSAGES[0]])])
        assert made.updates[0] is not None and made.updates[1] is not None
        both = dense_logits(tiny, [(lora.subspace, lora.values), (subspace, values[known[0].id])])
        torch.testing.assert_close(logits(tiny, made.updates[0]), both, rtol=1e-4, atol=1e-5)
        alone = dense_logits(tiny, [(lora.subspace, lora.values)])
        torch.testing.assert_close(logits(tiny, made.updates[1]), alone, rtol=1e-4, atol=1e-5)
    static_lora(tiny, 2, tmp_path / "other", seed=9)
    with pytest.raises(MethodError, match="were not trained upon the adapter at .*other"):
        check_method(config.model_copy(update={"adapter": str(tmp_path / "other")}))
    with pytest.raises(MethodError, match="were not trained upon the base model alone"):
        open_updates(settings("prag", bank=str(tmp_path / "bank")), tiny)


def test_test_time_adaptation_is_exactly_reset(tiny: LanguageModel, passages: list[Passage]) -> None:
    updates = open_updates(settings("tta", steps=2, lr=1e-2), tiny)
    fresh = open_updates(settings("tta", steps=2, lr=1e-2), tiny)([asked(passages[:2])]).updates[0]
    for start in (4, 6):
        updates([asked(passages[start : start + 2])])
    later = updates([asked(passages[:2])]).updates[0]
    assert fresh is not None and later is not None
    assert torch.equal(fresh, later)
    assert not torch.allclose(fresh, tiny.subspace.initial(0))


def test_test_time_adaptation_starts_where_its_seed_says_and_may_leave_the_passages_out_of_the_prompt(
    tiny: LanguageModel, passages: list[Passage]
) -> None:
    first, second = (
        open_updates(settings("tta", lr=1e-2, seed=seed), tiny)([asked(passages[:2])]).updates[0] for seed in (0, 1)
    )
    assert first is not None and second is not None
    assert not torch.allclose(first, second)
    alone = settings("tta", lr=1e-2, in_prompt=False)
    made = open_updates(alone, tiny)([asked(passages[:2])]).updates[0]
    assert made is not None and torch.equal(made, first)
    prompts = [method_of(config).prompt(PromptFormat(), "Who?", PASSAGES) for config in (alone, settings("tta"))]
    assert ["first" in prompt for prompt in prompts] == [False, True]
    assert method_of(alone).retrieves
    with pytest.raises(MethodError, match=r"method 'rag' \(x\) takes no in_prompt; it takes prompt_style"):
        check_method(settings("x", method="rag", in_prompt=False))


def test_what_is_missing_is_said_before_a_model_is_loaded(
    tiny: LanguageModel, meta_init: MetaInit, world: World, tmp_path: Path,
    regrad: tuple[MethodConfig, dict[str, Tensor]],
) -> None:  # fmt: skip
    adapter_bank(tiny, world, str(tmp_path / "adapters"))
    nothing = str(tmp_path / "nothing")
    config, _ = regrad
    for name in ("direct", "rag", "pe-rag", "tta"):
        check_method(settings(name))
    check_method(config)
    for wrong, error, message in [
        (settings("x", method="cpt"), MethodError, r"method cpt \(x\) needs 'adapter', a LoRA of `regrad finetune`"),
        (settings("ft-rag", adapter=nothing), MethodError, "there is no adapter at .*nothing"),
        (settings("prag"), MethodError, "needs 'bank', a bank of adapters that `regrad adapters` fills"),
        (settings("prag", bank=nothing), MethodError, "there is no bank at .*; fill one with `regrad adapters`"),
        (
            settings("prag", bank=config.bank),
            MethodError,
            "needs a bank of adapters, and .* holds gradients",
        ),
        (settings("prag-warm", bank=str(tmp_path / "adapters")), MethodError, "needs 'adapter'"),
        (settings("regrad"), MethodError, "needs 'meta_init', which `regrad train` makes"),
        (settings("regrad", meta_init=nothing), MetaInitError, "there is no MetaInit"),
        (settings("regrad", meta_init=config.meta_init), MethodError, "needs 'bank', a bank of gradients"),
        (settings("prag", bank=str(tmp_path / "adapters"), on_missing="online"), MethodError, "is fewer or fail"),
        (settings("regard"), MethodError, "did you mean 'regrad'"),
    ]:
        with pytest.raises(error, match=message):
            check_method(wrong)
    moved = MetaInit(tiny.config, tiny.identity(), tiny.subspace, meta_init.phi0 + 1, meta_init.step_sizes)
    moved.save(tmp_path / "moved")
    with pytest.raises(FingerprintMismatch):
        check_method(config.model_copy(update={"meta_init": str(tmp_path / "moved")}))


def test_a_string_is_a_method_that_needs_nothing() -> None:
    assert MethodConfig.model_validate("rag") == settings("rag")
    assert settings("our label", method="rag").kind == "rag"
