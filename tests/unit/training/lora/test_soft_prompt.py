"""Prompt tuning: what is trained and what is not, a run that goes on, its data, and the artefact."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regrad.data.passages import Passage, encode_passages
from regrad.errors import MethodError, TrainingError
from regrad.lab.config import LabConfig
from regrad.lab.files import lab_tasks
from regrad.lab.world import World
from regrad.models.loading import LanguageModel
from regrad.models.virtual_tokens import virtual_tokens
from regrad.training.loop import loop_of, resume
from regrad.training.lora.config import FinetuneConfig, SoftPromptConfig
from regrad.training.lora.examples import Example, passage_example, read_examples
from regrad.training.lora.finetuning import SoftPromptLearner, finetune_in_process, usable
from regrad.training.lora.soft_prompt import SoftPrompt, initial_embeddings, room_for, soft_prompt_costs
from regrad.training.sampler import batches_of
from tests.tools.adapting import drawn_soft_prompt
from tests.tools.refusals import refused, refused_settings
from tests.unit.training.lora.test_finetuning import Keeper
from tests.unit.training.lora.test_finetuning import settings as lora_settings

TOKENS = 5


def settings(lm: LanguageModel, **changes: Any) -> FinetuneConfig:
    changes["soft_prompt"] = {"tokens": TOKENS, **changes.pop("soft_prompt", {})}
    return lora_settings(lm, **changes)


def learner(lm: LanguageModel, config: FinetuneConfig) -> tuple[SoftPromptLearner, list[int]]:
    assert config.soft_prompt is not None
    start = initial_embeddings(lm, config.soft_prompt, config.seed)
    ids = room_for(lm, start)
    return SoftPromptLearner(lm, config, ids, start), list(ids)


@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_training_lowers_the_loss_and_moves_nothing_in_the_base(
    tiny: LanguageModel, passages: list[Passage], precision: str
) -> None:
    config = settings(tiny, optimizer={"steps": 8, "lr": 0.05, "precision": precision})
    made, ids = learner(tiny, config)
    base, start = tiny.identity(), made.values
    examples = [passage_example(tiny, passage).behind(ids) for passage in passages[:4]]
    state = loop_of(made, config, len(examples)).run(batches_of(examples, config))
    assert state.losses[-1] < state.losses[0] - 0.05
    assert tiny.identity() == base
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())
    assert (made.values != start).all(), "every number of every virtual token is trained"
    product = made.product(state)
    assert (product.values.shape, product.base_identity) == ((TOKENS, 32), base)
    assert torch.equal(product.values.flatten(), made.values)


def test_one_step_is_adamw_on_the_gradient_of_the_mean_loss(tiny64: LanguageModel, passages: list[Passage]) -> None:
    """Against the model's own loss of `inputs_embeds`."""
    config = settings(tiny64, optimizer={"steps": 1, "lr": 0.1, "clip": None, "warmup_fraction": 0, "batch_size": 2})
    made, ids = learner(tiny64, config)
    words = [passage_example(tiny64, passage).ids for passage in passages[:2]]
    values = made.values.view(TOKENS, -1).double().requires_grad_()
    embedding = tiny64.model.get_input_embeddings()  # type: ignore[operator]
    losses = []
    for one in words:
        given = torch.cat([values[None], embedding(torch.tensor([one]))], 1)
        labels = torch.tensor([[*[-100] * (TOKENS + 1), *one[1:]]])  # the first word is given, as without a soft prompt
        losses.append(tiny64.model(inputs_embeds=given, labels=labels).loss)
    mean = torch.stack(losses).mean()
    (gradient,) = torch.autograd.grad(mean, values)
    result = made.step([Example(one).behind(ids) for one in words], 1.0)
    assert result.loss == pytest.approx(float(mean.detach()), abs=1e-6)
    assert result.counts == {"tokens": sum(TOKENS + len(one) for one in words)}
    expected = values.detach() - 0.1 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(made.values.view(TOKENS, -1).double(), expected, rtol=1e-3, atol=1e-4)


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_numbers(
    tiny: LanguageModel, passages: list[Passage], tmp_path: Path
) -> None:
    config = settings(tiny)
    keeper, (whole, ids) = Keeper(tmp_path), learner(tiny, config)
    examples = [passage_example(tiny, passage).behind(ids) for passage in passages]
    state = loop_of(whole, config, len(examples), keeper).run(batches_of(examples, config))
    resumed, again = learner(tiny, config)
    assert again == ids
    before = resume(resumed, nullcontext(tmp_path / "2"))
    loop = loop_of(resumed, config, len(examples))
    assert loop.run(batches_of(examples, config, before.step), before).losses == state.losses
    assert torch.equal(resumed.values, whole.values)
    assert torch.equal(SoftPrompt.load(tmp_path / "6" / "soft_prompt").values.flatten(), whole.values)


def test_the_same_data_as_a_lora_is_read_behind_the_virtual_tokens(
    tiny: LanguageModel, world: World, tmp_path: Path
) -> None:
    records = lab_tasks(world.meta[:12], LabConfig(people_per_record=3), 4, seed=3)
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    changes: dict[str, Any] = {"objective": "questions-with-passages", "tasks": f"{tmp_path}/tasks.jsonl", "k": 2}
    changes |= {"max_tokens": 110, "questions_together": 2}
    plain = list(read_examples(lora_settings(tiny, **changes), tiny))
    virtual = room_for(tiny, torch.zeros(30, 32))
    behind = list(read_examples(settings(tiny, **changes), tiny, virtual))
    assert len(plain) == len(behind)
    shorter = 0
    for one, other in zip(plain, behind, strict=True):
        for (ids, start), (longer, later) in zip(one.sequences, other.sequences, strict=True):
            assert longer[:30] == virtual
            assert longer[later:] == ids[start:], "the same is predicted"
            shorter += longer[30:] != ids
    assert shorter, "passages are left out where virtual tokens take their room"
    kept = usable(tiny, behind, settings(tiny, **changes))
    assert kept and max(len(ids) for example in kept for ids, _ in example.sequences) <= 110


def test_a_whole_training_is_noted_and_its_costs_are_known(
    tiny: LanguageModel, passages: list[Passage], tmp_path: Path
) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(encode_passages(passages[:8]))
    config = settings(tiny, corpus=f"{tmp_path}/corpus.jsonl", optimizer={"steps": 2})
    made = finetune_in_process(config)
    assert isinstance(made, SoftPrompt)
    assert (made.notes["examples"], made.notes["steps"], made.notes["parent"]) == (8, 2, None)
    assert made.notes["settings"]["soft_prompt"] == {"tokens": TOKENS, "from_text": None}
    made.save(tmp_path / "first")
    costs = soft_prompt_costs(tmp_path / "first")
    assert costs is not None and costs.preparation_ms is not None
    assert costs.storage_bytes * 8 == made.size_bytes == 4 * TOKENS * 32
    assert costs.preparation_ms * 8 == pytest.approx(1e3 * made.notes["seconds"])
    second = finetune_in_process(config.model_copy(update={"start_from": f"{tmp_path}/first"}))
    assert second.notes["parent"] == made.digest
    assert second.notes["losses"][0] < made.notes["losses"][0]
    with refused(MethodError, "soft_prompt_of_another_length", expected=4, found=TOKENS):
        longer = config.soft_prompt.model_copy(update={"tokens": 4}) if config.soft_prompt else None
        finetune_in_process(config.model_copy(update={"start_from": f"{tmp_path}/first", "soft_prompt": longer}))
    with refused(MethodError, "adapter_not_found"):
        finetune_in_process(config.model_copy(update={"start_from": f"{tmp_path}/first", "soft_prompt": None}))


def test_it_begins_as_tokens_of_the_vocabulary_or_of_a_text(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tiny.model.get_input_embeddings().weight  # type: ignore[operator]
    drawn = [initial_embeddings(tiny, SoftPromptConfig(tokens=300), seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    rows = [(table == row).all(1).nonzero()[0].item() for row in drawn[0]]
    assert not set(rows) & set(tiny.tokenizer.all_special_ids)
    assert len(set(rows)) > 200
    words = tiny.encode("Answer the question.")
    found = initial_embeddings(tiny, SoftPromptConfig(tokens=len(words) + 2, from_text="Answer the question."), 0)
    assert torch.equal(found, table[[*words, *words[:2]]])
    monkeypatch.setattr(tiny, "encode", lambda text: [])
    with refused(TrainingError, "text_without_tokens"):
        initial_embeddings(tiny, SoftPromptConfig(from_text=" "), 0)


def test_its_rate_is_its_own_unless_the_settings_say_another(tiny: LanguageModel) -> None:
    data = {"model": tiny.config.model_dump(), "objective": "passages", "corpus": "c", "output": "o"}
    assert FinetuneConfig.model_validate(data).optimizer.lr == 3e-4
    soft = {**data, "soft_prompt": {}}
    assert FinetuneConfig.model_validate(soft).optimizer.lr == SoftPromptConfig.LR
    assert FinetuneConfig.model_validate({**soft, "optimizer": {"steps": 7}}).optimizer.lr == SoftPromptConfig.LR
    assert FinetuneConfig.model_validate({**soft, "optimizer": {"lr": 0.5}}).optimizer.lr == 0.5
    again = FinetuneConfig.model_validate({**soft, "optimizer": {"lr": 3e-4}})
    assert FinetuneConfig.model_validate(again.model_dump()).optimizer.lr == 3e-4
    with refused_settings("adapters_beside_soft_prompt"):
        settings(tiny, objective="questions", tasks="t", adapters="a")


def test_it_is_saved_as_peft_reads_it(tiny: LanguageModel, tiny_path: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = drawn_soft_prompt(tiny, tmp_path / "a")
    loaded = SoftPrompt.load(tmp_path / "a")
    assert (loaded.digest, loaded.values.tolist()) == (made.digest, made.values.tolist())
    ids = torch.randint(3, 900, (1, 9))
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_path), str(tmp_path / "a")).eval()
    with torch.no_grad():
        expected = peft(input_ids=ids).logits
        found = tiny.logits(tiny.hidden(torch.tensor([[*loaded.put(tiny), *ids[0].tolist()]])))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_damaged_one_is_refused(tiny: LanguageModel, tmp_path: Path) -> None:
    made = drawn_soft_prompt(tiny, tmp_path / "a")
    with refused(MethodError, "soft_prompt_not_found"):
        SoftPrompt.load(tmp_path / "b")
    replace(made, values=torch.full_like(made.values, torch.inf)).save(tmp_path / "infinite")
    with refused(MethodError, "soft_prompt_damaged"):
        SoftPrompt.load(tmp_path / "infinite")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(bytes(data))
    with refused(MethodError, "soft_prompt_damaged"):
        SoftPrompt.load(tmp_path / "a")
    weights.unlink()
    with refused(MethodError, "soft_prompt_damaged"):
        SoftPrompt.load(tmp_path / "a")
    card = tmp_path / "a" / "soft_prompt.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "format": 0}))
    with refused(MethodError, "soft_prompt_other_format", found=0, expected=1) as info:
        SoftPrompt.load(tmp_path / "a")
    assert "the soft prompt at" in str(info.value)


def test_one_of_another_base_or_without_room_behind_it_is_refused(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = drawn_soft_prompt(tiny, tmp_path / "a", tokens=TOKENS)
    with refused(MethodError, "soft_prompt_of_another_base", found="f" * 16, expected=tiny.identity()[:16]):
        replace(made, base_identity="f" * 64).put(tiny)
    monkeypatch.setattr(tiny, "context_length", TOKENS)
    with refused(MethodError, "soft_prompt_longer_than_context", tokens=TOKENS, context=TOKENS):
        made.put(tiny)
    monkeypatch.setattr(tiny, "context_length", TOKENS + 1)
    assert made.put(tiny) == virtual_tokens(tiny).put(made.values)
