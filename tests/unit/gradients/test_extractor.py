"""Atoms: batched equals one by one equals plain autograd, with padding and different lengths."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers.models.llama.modeling_llama import LlamaMLP

from regrad.bank.codecs import codec_for
from regrad.bank.config import CodecName
from regrad.data.passages import Passage
from regrad.errors import MetaInitError, ModelError
from regrad.gradients import extractor as extraction
from regrad.gradients.extractor import AtomExtractor, encode_passage, passage_gradients
from regrad.meta_init import MetaInit
from regrad.models import token_losses
from regrad.models.loading import LanguageModel
from tests.tools.refusals import refused
from tests.unit.models.test_lora import merged_weights


def autograd_atom(lm: LanguageModel, phi0: Tensor, passage: Passage) -> Tensor:
    """The gradient of Hugging Face's own loss, through merged weights: shares no code with the extractor."""
    phi = phi0.clone().requires_grad_()
    ids = torch.tensor([encode_passage(lm, passage)])
    loss = functional_call(lm.model, merged_weights(lm, phi), kwargs={"input_ids": ids, "labels": ids}).loss
    return torch.autograd.grad(loss, phi)[0]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_batched_atoms_equal_autograd_one_by_one(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage]
) -> None:
    longer = Passage("long", "A title", " ".join(p.text for p in passages[:3]))
    shorter = Passage("short", "T", "One.")
    everything = [*passages, longer, shorter]
    lengths = {len(encode_passage(tiny, passage)) for passage in everything}
    assert len(lengths) > 3
    for item in AtomExtractor(tiny, meta_init, batch_tokens=400).extract(everything):
        assert item.atom is not None
        assert relative_error(item.atom, autograd_atom(tiny, meta_init.phi0, item.passage)) < 1e-5


def test_the_batching_changes_no_atom(tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage]) -> None:
    one_by_one = AtomExtractor(tiny, meta_init, batch_tokens=1).extract(passages)
    together = AtomExtractor(tiny, meta_init, batch_tokens=10**6).extract(passages)
    for a, b in zip(one_by_one, together, strict=True):
        assert a.passage == b.passage
        assert a.atom is not None
        assert b.atom is not None
        assert relative_error(a.atom, b.atom) < 1e-5


def test_logits_are_made_for_some_tokens_at_a_time(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = AtomExtractor(tiny, meta_init, batch_tokens=10**6)
    monkeypatch.setitem(token_losses._AT_ONCE, "cpu", 64 * tiny.vocabulary_size)
    sizes: list[int] = []
    logits = token_losses._Head._logits
    monkeypatch.setattr(token_losses._Head, "_logits", lambda *of: sizes.append(len(of[1])) or logits(*of))
    extractor.extract(passages)
    assert sum(sizes) == sum(len(encode_passage(tiny, passage)) - 1 for passage in passages)
    assert len(sizes) > 1
    assert max(sizes) == 64


def test_sum_reduction_is_the_mean_times_the_predicted_tokens(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage]
) -> None:
    summed = MetaInit(tiny.config, tiny.identity(), tiny.subspace, meta_init.phi0, meta_init.step_sizes, "sum")
    mean = AtomExtractor(tiny, meta_init).extract(passages[:1])[0].atom
    total = AtomExtractor(tiny, summed).extract(passages[:1])[0].atom
    assert mean is not None
    assert total is not None
    tokens = len(encode_passage(tiny, passages[0])) - 1
    assert relative_error(total, mean * tokens) < 1e-5


def test_a_bad_passage_stops_nothing(tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage]) -> None:
    empty, endless = Passage("e", "Title", "  "), Passage("l", "Title", "word " * 4000)
    found = AtomExtractor(tiny, meta_init).extract([empty, passages[0], endless])
    assert [item.problem.split(",")[0] for item in found] == ["empty text", "", f"{found[2].problem.split(',')[0]}"]
    assert "more than 256" in found[2].problem
    assert [item.atom is None for item in found] == [True, False, True]


def test_a_non_finite_gradient_is_reported(tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage]) -> None:
    broken = MetaInit(tiny.config, tiny.identity(), tiny.subspace, meta_init.phi0 * float("inf"), meta_init.step_sizes)
    assert AtomExtractor(tiny, broken).extract(passages[:1])[0].problem == "non-finite gradient"


@pytest.mark.parametrize("name", ["float32", "bf16", "int8", "int4"])
def test_encoded_records_are_the_codec_of_the_atoms(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], name: CodecName
) -> None:
    codec, extractor = codec_for(name, tiny.subspace), AtomExtractor(tiny, meta_init, batch_tokens=150)
    atoms = torch.stack([item.atom for item in extractor.extract(passages) if item.atom is not None])
    found = extractor.extract(passages, codec.encode)
    assert [item.passage for item in found] == passages
    assert all(item.atom is None and not item.problem for item in found)
    assert torch.equal(torch.stack([item.record for item in found if item.record is not None]), codec.encode(atoms))


def test_only_records_outlive_their_batch(tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage]) -> None:
    codec, batches = codec_for("int8", tiny.subspace), []

    def encode(atoms: Tensor) -> Tensor:
        assert all(earlier() is None for earlier in batches)
        batches.append(weakref.ref(atoms))
        return codec.encode(atoms)

    found = AtomExtractor(tiny, meta_init, batch_tokens=150).extract(passages, encode)
    storages = [item.record.untyped_storage() for item in found if item.record is not None]
    kept = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert len(batches) > 2
    assert sum(kept.values()) == len(passages) * codec.record_bytes


def test_a_non_finite_gradient_never_reaches_the_codec(
    tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = AtomExtractor(tiny, meta_init)

    def one_broken(*arguments: Any) -> tuple[Tensor, Tensor]:
        gradients, losses = passage_gradients(*arguments)
        gradients[1, 7] = float("nan")
        return gradients, losses

    monkeypatch.setattr("regrad.gradients.extractor.passage_gradients", one_broken)
    codec = codec_for("int8", tiny.subspace)
    found = extractor.extract([*passages[:4], Passage("e", "T", "")], codec.encode)
    assert sorted(item.problem for item in found) == ["", "", "", "empty text", "non-finite gradient"]
    whole = extractor.extract(passages[:4])
    for item, atom in zip(found, [item.atom for item in whole], strict=False):
        assert (item.record is None) == bool(item.problem)
        if item.record is not None and atom is not None:
            assert torch.equal(item.record, codec.encode(atom[None])[0])


def test_another_base_model_is_refused(tiny: LanguageModel, meta_init: MetaInit) -> None:
    with torch.no_grad():
        next(tiny.model.parameters())[0, 0] += 1.0
    with refused(MetaInitError, "other_base"):
        AtomExtractor(tiny, meta_init)


def test_a_model_whose_rows_depend_on_each_other_is_refused(
    tiny: LanguageModel, meta_init: MetaInit, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LlamaMLP.forward

    def longest_decides(self: LlamaMLP, x_NTD: Tensor) -> Tensor:
        return original(self, x_NTD * (1 + x_NTD.shape[1] / 50))

    monkeypatch.setattr(extraction, "_VERIFIED", weakref.WeakSet())
    monkeypatch.setattr(LlamaMLP, "forward", longest_decides)
    with refused(ModelError, "atoms_not_independent", model="LlamaForCausalLM"):
        AtomExtractor(tiny, meta_init)
    monkeypatch.undo()
    AtomExtractor(tiny, meta_init)


def test_a_row_that_reads_its_neighbour_is_found_at_equal_lengths_too(
    tiny: LanguageModel, meta_init: MetaInit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statistic of the whole batch, as of batch normalisation."""
    original = LlamaMLP.forward
    monkeypatch.setattr(extraction, "_VERIFIED", weakref.WeakSet())
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda self, x_NTD: original(self, x_NTD + 0.2 * x_NTD.mean(0, keepdim=True))
    )
    with refused(ModelError, "atoms_not_independent"):
        AtomExtractor(tiny, meta_init)


def test_a_model_is_verified_once(tiny: LanguageModel, meta_init: MetaInit, monkeypatch: pytest.MonkeyPatch) -> None:
    AtomExtractor(tiny, meta_init)
    monkeypatch.setattr(extraction, "passage_gradients", lambda *_: pytest.fail("verified again"))
    AtomExtractor(tiny, meta_init)
