from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from regrad.errors import MetaInitError
from regrad.meta_init import MetaInit, random_meta_init, read_card
from regrad.models.loading import LanguageModel
from tests.tools.chats import without_end_token
from tests.tools.refusals import refused


def test_what_is_saved_is_loaded(meta_init: MetaInit, tmp_path: Path) -> None:
    meta_init.save(tmp_path / "m")
    loaded = MetaInit.load(tmp_path / "m")
    assert loaded.fingerprint == meta_init.fingerprint
    assert torch.equal(loaded.phi0, meta_init.phi0)
    assert torch.equal(loaded.step_sizes, meta_init.step_sizes)
    assert loaded.model == meta_init.model
    assert loaded.subspace == meta_init.subspace


def test_peft_loads_the_directory_and_gives_the_same_logits(
    tiny: LanguageModel, tiny_path: Path, meta_init: MetaInit, tmp_path: Path
) -> None:
    meta_init.save(tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "step_sizes.safetensors",
    }
    base = AutoModelForCausalLM.from_pretrained(tiny_path)
    plain_logits = base(input_ids=torch.tensor([[1, 5, 9]])).logits
    peft = PeftModel.from_pretrained(base, str(tmp_path / "m")).eval()
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad(), tiny.lora.applied(meta_init.phi0):
        ours = tiny.model(input_ids=ids).logits
        theirs = peft(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (theirs - plain_logits).abs().max() > 1e-3


def test_the_fingerprint_changes_with_the_content_and_not_with_the_path(
    tiny: LanguageModel, meta_init: MetaInit, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        meta_init.save(tmp_path / name)
    assert read_card(tmp_path / "a")["fingerprint"] == read_card(tmp_path / "b")["fingerprint"]
    phi, alpha = meta_init.phi0, meta_init.step_sizes
    others = [
        MetaInit(tiny.config, "0" * 64, tiny.subspace, phi, alpha),
        MetaInit(tiny.config, tiny.identity(), tiny.subspace, phi + 1e-3, alpha),
        MetaInit(tiny.config, tiny.identity(), tiny.subspace, phi, alpha * 2),
        MetaInit(tiny.config, tiny.identity(), tiny.subspace, phi, alpha, "sum"),
        MetaInit(without_end_token(tiny).config, tiny.identity(), tiny.subspace, phi, alpha),
    ]
    assert len({meta_init.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_what_updates_act_on_is_kept_and_counts_in_the_fingerprint_unless_it_is_everything(
    meta_init: MetaInit, tmp_path: Path
) -> None:
    activated = replace(meta_init, acts_on="answer")
    assert activated.fingerprint != meta_init.fingerprint
    activated.save(tmp_path / "answer")
    loaded = MetaInit.load(tmp_path / "answer")
    assert (loaded.acts_on, loaded.fingerprint) == ("answer", activated.fingerprint)
    meta_init.save(tmp_path / "everything")
    card = read_card(tmp_path / "everything")
    assert (card["acts_on"], MetaInit.load(tmp_path / "everything").acts_on) == ("everything", "everything")


def test_the_fingerprint_of_a_meta_init_before_there_was_such_a_setting_is_the_same(meta_init: MetaInit) -> None:
    prompts = meta_init.model.prompts
    head = {
        "base": meta_init.base_identity,
        "subspace": meta_init.subspace.to_json(),
        "atom_text": [prompts.passage, prompts.atom],
        "inner_reduction": "mean",
    }
    content = json.dumps(head, sort_keys=True).encode()
    for tensor in (meta_init.phi0, meta_init.step_sizes):
        content += tensor.numpy().tobytes()
    assert meta_init.fingerprint == hashlib.sha256(content).hexdigest()[:16]


def test_a_card_that_does_not_say_what_updates_act_on_means_everything(meta_init: MetaInit, tmp_path: Path) -> None:
    meta_init.save(tmp_path)
    card = json.loads((tmp_path / "meta_init.json").read_text())
    unknown = {**card, "acts_on": "nothing"}
    (tmp_path / "meta_init.json").write_text(json.dumps(unknown))
    with refused(MetaInitError, "damaged", uri=str(tmp_path)):
        MetaInit.load(tmp_path)
    card.pop("acts_on")
    (tmp_path / "meta_init.json").write_text(json.dumps(card))
    loaded = MetaInit.load(tmp_path)
    assert (loaded.acts_on, loaded.fingerprint) == ("everything", meta_init.fingerprint)


def test_a_card_of_another_format_says_what_to_do(meta_init: MetaInit, tmp_path: Path) -> None:
    meta_init.save(tmp_path)
    card = json.loads((tmp_path / "meta_init.json").read_text())
    (tmp_path / "meta_init.json").write_text(json.dumps({**card, "format": 2}))
    with refused(MetaInitError, "other_format", expected=1, found=2) as info:
        read_card(tmp_path)
    assert "train it again with `regrad train`, or use the version that made it" in str(info.value)
    (tmp_path / "meta_init.json").write_text(json.dumps({**card, "fingerprint": None}))
    with refused(MetaInitError, "bad_card", uri=str(tmp_path)):
        read_card(tmp_path)


def test_the_update_is_equation_three(meta_init: MetaInit) -> None:
    total = torch.randn(meta_init.subspace.size)
    alpha = meta_init.subspace.per_tensor(meta_init.step_sizes)
    torch.testing.assert_close(meta_init.update(total, 0.5), meta_init.phi0 - 0.5 * alpha * total)
    assert torch.equal(meta_init.update(total, 0.0), meta_init.phi0)


def test_changed_tensors_are_noticed(meta_init: MetaInit, tmp_path: Path) -> None:
    meta_init.save(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    save_file({**tensors, first: tensors[first] + 1}, tmp_path / "adapter_model.safetensors")
    with refused(MetaInitError, "other_fingerprint", expected=meta_init.fingerprint):
        MetaInit.load(tmp_path)


def test_missing_and_damaged_files_are_named(meta_init: MetaInit, tmp_path: Path) -> None:
    with refused(MetaInitError, "not_found", uri=str(tmp_path / "none")):
        MetaInit.load(tmp_path / "none")
    meta_init.save(tmp_path)
    card = json.loads((tmp_path / "meta_init.json").read_text())
    (tmp_path / "adapter_model.safetensors").write_bytes(b"garbage")
    with refused(MetaInitError, "damaged", uri=str(tmp_path)):
        MetaInit.load(tmp_path)
    (tmp_path / "meta_init.json").write_text(json.dumps({**card, "format": 99}))
    with refused(MetaInitError, "other_format", uri=str(tmp_path)):
        MetaInit.load(tmp_path)
    (tmp_path / "meta_init.json").write_text("{")
    with refused(MetaInitError, "bad_card", uri=str(tmp_path)):
        MetaInit.load(tmp_path)


def test_saving_again_replaces_the_whole_directory(meta_init: MetaInit, tmp_path: Path) -> None:
    target = tmp_path / "m"
    meta_init.save(target)
    (target / "stray").write_text("x")
    meta_init.save(target)
    assert not (target / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_raw_start_leaves_the_base_model_as_it_is(tiny: LanguageModel) -> None:
    raw = random_meta_init(tiny, 3.0)
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        base = tiny.model(input_ids=ids).logits
        with tiny.lora.applied(raw.phi0):
            torch.testing.assert_close(tiny.model(input_ids=ids).logits, base)
    assert set(raw.step_sizes.tolist()) == {3.0}


def test_a_rounded_start_takes_half_the_space_and_keeps_its_fingerprint(meta_init: MetaInit, tmp_path: Path) -> None:
    rounded = replace(meta_init, phi0=meta_init.phi0.bfloat16().float())
    for start, kind in ((meta_init, torch.float32), (rounded, torch.bfloat16)):
        start.save(tmp_path / "m")
        assert {t.dtype for t in load_file(tmp_path / "m" / "adapter_model.safetensors").values()} == {kind}
        found = MetaInit.load(tmp_path / "m")
        assert found.fingerprint == start.fingerprint and found.phi0.dtype == torch.float32
