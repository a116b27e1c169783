"""A bank of generated LoRAs: what `regrad adapters` with a translator stores, and that the methods answer with it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from ray_jobs import bank_actors, train_adapters
from ray_jobs.bank_actors import AdapterActor, TranslatorActor
from ray_jobs.corpus_blocks import decode_error
from ray_jobs.train_adapters import layout_of
from regrad.bank.builder import BUILT, assemble
from regrad.bank.config import CodecName
from regrad.bank.format import Manifest, read_manifest
from regrad.bank.io.tensors import export_tensors, import_tensors
from regrad.bank.reader import BankReader
from regrad.bank.writer import commit
from regrad.data.augmented import AUGMENTED
from regrad.data.passages import Passage
from regrad.errors import BankError, MethodError
from regrad.lab.world import World
from regrad.methods.base import Evidence, Method, Plan, open_question
from regrad.methods.prag import adapters_layout
from regrad.models.loading import LanguageModel
from regrad.settings import parse_settings
from regrad.storage import Storage
from regrad.training.lora.config import AdaptersConfig
from regrad.training.translator.artifact import Translator
from regrad.training.translator.config import TranslatorConfig
from regrad.training.translator.learner import TranslatorLearner
from tests.tools.adapting import adapter_bank, untrained_translator
from tests.tools.evaluating import method_settings
from tests.tools.refusals import refused, refused_settings


@pytest.fixture(autouse=True)
def _on_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a cluster there is nobody to say which devices a worker has."""
    for module in (bank_actors, train_adapters):
        monkeypatch.setattr(module, "model_devices", lambda: "cpu")


def settings(tiny: LanguageModel, folder: Path, codec: CodecName = "float32", **more: Any) -> AdaptersConfig:
    values = {"corpus": str(folder / "corpus.jsonl"), "translator": str(folder / "translator"), **more}
    bank = {"uri": str(folder / "bank"), "codec": codec}
    return parse_settings(AdaptersConfig, {"model": tiny.config.model_dump(), "bank": bank, **values}, "test")


def block(passages: list[Passage]) -> pa.Table:
    lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}).encode() for p in passages]
    return pa.table({"line": lines, "problem": [""] * len(lines), "read_bytes": [1] * len(lines)})


def actor(config: AdaptersConfig) -> TranslatorActor:
    """As the job starts it."""
    return TranslatorActor(config.model_dump(mode="json"), None, layout_of(config).translator or "")


def filled(config: AdaptersConfig, passages: list[Passage]) -> Manifest:
    """The bank, as the job makes it of one block."""
    done = actor(config)(block(passages))
    assert done["failure"].drop_null().to_pylist() == []
    built = done.select(BUILT.names).cast(BUILT)
    storage = Storage(config.bank.uri)
    change = assemble(storage, built.filter(built["passage_id"].is_valid()), None, whole=True)
    return commit(storage, layout_of(config), change, None, fresh=True)


def plan(tiny: LanguageModel, name: str, passages: list[Passage], **values: Any) -> Plan:
    config = method_settings(name, **values)
    config.check()
    method: Method = config.open(tiny)
    return method.answer_plans([Evidence(open_question("Who?"), tuple(passages))], method.open_atoms())[0]


# float32 stores each number as it is, and both sides read a passage alone with the same weights and then sum by the
# same `join`: every bit is the same. bf16 rounds each number, by at most 2^-8 of it.
@pytest.mark.parametrize(("codec", "rtol"), [("float32", 0.0), ("bf16", 2.0**-8)])
@pytest.mark.parametrize("count", [1, 3])
def test_stored_loras_answer_as_those_that_are_generated_for_the_question(
    tiny: LanguageModel, tmp_path: Path, passages: list[Passage], codec: CodecName, rtol: float, count: int
) -> None:
    made, asked = untrained_translator(tiny, tmp_path / "translator"), passages[:count]
    manifest = filled(settings(tiny, tmp_path, codec), passages[:4])
    place = {"translator": str(tmp_path / "translator")}
    stored = {"bank": str(tmp_path / "bank")}
    (now,) = plan(tiny, "dyprag", asked, **place).updates
    assert bool(now.vector.any()), "or a bank of zeros would pass"
    for name, values in (("prag", {}), ("prag+icl", {}), ("dyprag", place), ("dyprag+icl", place)):
        found = plan(tiny, name, asked, **stored, **values)
        assert (found.notes, found.bytes_fetched) == ((), count * manifest.record_bytes)
        assert [use.missing for use in found.uses] == [False] * count
        assert found.updates[0].subspace == now.subspace
        torch.testing.assert_close(found.updates[0].vector, now.vector, rtol=rtol, atol=0)
    (released,) = plan(tiny, "dyprag", asked, join="released", **place).updates
    (fetched,) = plan(tiny, "dyprag", asked, join="released", **place, **stored).updates
    torch.testing.assert_close(fetched.vector, released.vector, rtol=0, atol=1e-2 if rtol else 0)
    assert (manifest.translator, manifest.parsed_subspace()) == (made.digest, made.subspace)


def test_what_the_bank_lacks_is_generated_or_left_out_and_what_was_deleted_stays_so(
    tiny: LanguageModel, tmp_path: Path, passages: list[Passage]
) -> None:
    untrained_translator(tiny, tmp_path / "translator")
    filled(settings(tiny, tmp_path), passages[:2])
    places = {"translator": str(tmp_path / "translator"), "bank": str(tmp_path / "bank")}
    asked = [passages[0], passages[5], passages[1]]
    (now,) = plan(tiny, "dyprag", asked, translator=places["translator"]).updates
    (alone,) = plan(tiny, "dyprag", [passages[0], passages[1]], translator=places["translator"]).updates
    completed, fewer = plan(tiny, "dyprag", asked, **places), plan(tiny, "dyprag", asked, on_missing="fewer", **places)
    assert torch.equal(completed.updates[0].vector, now.vector)
    assert torch.equal(fewer.updates[0].vector, alone.vector)
    assert [(n.policy, n.passage_ids) for n in (*completed.notes, *fewer.notes)] == [
        ("online", (passages[5].id,)),
        ("fewer", (passages[5].id,)),
    ]
    by_rag = plan(tiny, "dyprag", asked, on_missing="rag", **places)
    assert by_rag.updates == ()
    assert passages[5].text in by_rag.prompt.text(tiny.config.prompts)


def test_a_stopped_job_generates_no_block_twice_and_another_translator_makes_others(
    tiny: LanguageModel, tmp_path: Path, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = untrained_translator(tiny, tmp_path / "translator")
    config = settings(tiny, tmp_path)
    first = actor(config)(block(passages[:3]))
    read: list[Passage] = []
    lora_of = Translator.lora_of
    monkeypatch.setattr(Translator, "lora_of", lambda self, lm, one: read.append(one) or lora_of(self, lm, one))
    again = actor(config)(block(passages[:3]))
    assert again["shard"].to_pylist() == first["shard"].to_pylist()
    assert read == []
    replace(made, max_tokens=made.max_tokens - 1).save(tmp_path / "translator")
    actor(config)(block(passages[:3]))
    assert read == passages[:3]


def test_a_passage_whose_lora_is_not_finite_is_quarantined_and_the_others_are_stored(
    tiny: LanguageModel, tmp_path: Path, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained_translator(tiny, tmp_path / "translator")
    lora_of = Translator.lora_of
    bad = passages[1]
    monkeypatch.setattr(
        Translator, "lora_of", lambda self, lm, one: lora_of(self, lm, one) * (torch.inf if one == bad else 1.0)
    )
    manifest = filled(settings(tiny, tmp_path), passages[:3])
    assert (manifest.passages, manifest.quarantined) == (2, 1)
    with BankReader(str(tmp_path / "bank")) as reader:
        assert reader.locate(bad.id) is None


def test_what_does_not_belong_together_is_refused(tiny: LanguageModel, tmp_path: Path, passages: list[Passage]) -> None:
    made = untrained_translator(tiny, tmp_path / "translator")
    config = settings(tiny, tmp_path)
    filled(config, passages[:2])
    other = replace(made, max_tokens=made.max_tokens - 1)
    other.save(tmp_path / "other")
    named = method_settings("dyprag", translator=str(tmp_path / "other"), bank=config.bank.uri)
    for act in (named.check, lambda: named.open(tiny)):
        with refused(MethodError, "bank_of_another_translator", expected=other.digest, found=made.digest):
            act()
    base = "0" * 64
    replace(made, base_identity=base, bank=adapters_layout(made.subspace, base)).save(tmp_path / "foreign")
    with refused(MethodError, "translator_of_another_base"):
        layout_of(config.model_copy(update={"translator": str(tmp_path / "foreign")}))
    with refused_settings("trained_and_generated"):
        settings(tiny, tmp_path, static=str(tmp_path / "lora"))
    with refused(MethodError, "translator_not_found"):
        train_adapters.train(config.model_copy(update={"translator": str(tmp_path / "none")}))


def test_a_translator_that_was_trained_anew_while_the_bank_is_filled_is_refused(
    tiny: LanguageModel, tmp_path: Path, passages: list[Passage]
) -> None:
    made = untrained_translator(tiny, tmp_path / "translator")
    begun = actor(settings(tiny, tmp_path))
    other = replace(made, max_tokens=made.max_tokens - 1)
    other.save(tmp_path / "translator")
    (failure,) = begun(block(passages[:2]))["failure"].drop_null().to_pylist()
    error = decode_error(failure)
    assert isinstance(error, BankError) and error.code == "bank.translator_changed"
    assert (error.fields["expected"], error.fields["found"]) == (made.digest, other.digest)
    assert not Storage(f"{tmp_path}/bank").list("")


def test_a_corpus_is_taken_as_it_is_and_of_augmented_passages_their_file(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained_translator(tiny, tmp_path / "translator")
    seen: list[tuple[str, object]] = []
    monkeypatch.setattr(train_adapters, "cluster", nullcontext)
    for name in ("wait_for_room", "run_task"):
        monkeypatch.setattr(train_adapters, name, lambda *args, **more: None)
    monkeypatch.setattr(
        train_adapters, "fill", lambda config, layout, actor, **more: seen.append((config.corpus, actor))
    )
    (tmp_path / "augmented").mkdir()
    (tmp_path / "augmented" / AUGMENTED).touch()
    for corpus in ("corpus.tsv", "corpora", "augmented", "corpus.jsonl"):
        train_adapters.train(settings(tiny, tmp_path, corpus=str(tmp_path / corpus)))
    train_adapters.train(settings(tiny, tmp_path, corpus=str(tmp_path / "corpora"), translator=None))
    augmented = f"augmented/{AUGMENTED}"
    generated = [
        (f"{tmp_path}/{name}", TranslatorActor) for name in ("corpus.tsv", "corpora", augmented, "corpus.jsonl")
    ]
    assert seen == [*generated, (f"{tmp_path}/corpora/{AUGMENTED}", AdapterActor)]


def test_an_export_says_which_translator_it_is_of_and_what_is_trained_keeps_its_bytes(
    tiny: LanguageModel, tmp_path: Path, passages: list[Passage], world: World
) -> None:
    untrained_translator(tiny, tmp_path / "translator")
    manifest = filled(settings(tiny, tmp_path), passages[:2])
    export_tensors(f"{tmp_path}/bank", f"{tmp_path}/export")
    assert import_tensors(f"{tmp_path}/export", f"{tmp_path}/again").manifest.layout == manifest.layout
    adapter_bank(tiny, world, f"{tmp_path}/trained")
    trained = read_manifest(Storage(f"{tmp_path}/trained"))
    assert b"translator" not in trained.encoded()
    with refused(BankError, "other_layout"):
        import_tensors(f"{tmp_path}/export", f"{tmp_path}/trained")


def test_a_translator_does_not_learn_from_what_one_has_generated(
    tiny: LanguageModel, tmp_path: Path, passages: list[Passage]
) -> None:
    made = untrained_translator(tiny, tmp_path / "translator")
    filled(settings(tiny, tmp_path), passages[:2])
    values = {"bank": f"{tmp_path}/bank", "corpus": f"{tmp_path}/corpus.jsonl", "output": f"{tmp_path}/new"}
    config = parse_settings(TranslatorConfig, {"model": tiny.config.model_dump(), **values}, "test")
    with refused(MethodError, "adapters_not_trained", translator=made.digest):
        TranslatorLearner(tiny, config)
