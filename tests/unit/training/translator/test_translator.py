"""A translator learns the LoRAs of a bank, survives being killed, and belongs to one base and one kind of adapters."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from regrad.data.augmented import encode_augmented
from regrad.data.passages import Passage
from regrad.errors import MethodError, ModelError, TrainingError
from regrad.lab.world import World
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace
from regrad.settings import parse_settings
from regrad.training.callbacks import Silent
from regrad.training.checkpoint import TrainCheckpoint
from regrad.training.loop import train_on
from regrad.training.translator.artifact import CARD, Translator, state_of
from regrad.training.translator.config import PerceptronsConfig, TranslatorConfig
from regrad.training.translator.learner import TranslatorLearner, losses_of, translator_in_process
from regrad.training.translator.network import TranslatorNetwork
from regrad.training.translator.samples import Samples, samples_digest
from tests.tools.adapting import adapter_bank, static_lora, untrained_translator
from tests.tools.augmenting import augmented
from tests.tools.refusals import refused


@pytest.fixture
def bank(tiny: LanguageModel, tmp_path: Path, world: World) -> dict[str, Tensor]:
    """Adapters of three passages, and their augmented passages."""
    (tmp_path / "augmented.jsonl").write_bytes(encode_augmented(augmented(world, 3)))
    return adapter_bank(tiny, world, str(tmp_path / "bank"))[1]


def settings(tiny: LanguageModel, tmp_path: Path, **changes: Any) -> TranslatorConfig:
    values: dict[str, Any] = {
        "model": tiny.config.model_dump(),
        "bank": str(tmp_path / "bank"),
        "corpus": str(tmp_path / "augmented.jsonl"),
        "output": str(tmp_path / "translator"),
        "network": {"hidden": 32, "deviation": 0.05},
        "optimizer": {"epochs": None, "steps": 6, "batch_size": 1, "lr": 1e-3},
    }
    return parse_settings(TranslatorConfig, values | changes, "test")


@pytest.mark.slow
def test_a_translator_learns_two_adapters_by_heart_and_tells_their_passages_apart(
    tiny: LanguageModel, tmp_path: Path, world: World, bank: dict[str, Tensor]
) -> None:
    items = augmented(world, 2)
    (tmp_path / "augmented.jsonl").write_bytes(encode_augmented(items))
    optimizer = {"epochs": None, "steps": 150, "batch_size": 2, "lr": 5e-3, "schedule": "linear"}
    made = translator_in_process(settings(tiny, tmp_path, optimizer=optimizer))
    found = [made.lora_of(tiny, item.passage) for item in items]
    wanted = [bank[item.passage.id] for item in items]
    apart = (wanted[0] - wanted[1]).norm()
    for own, target, other in zip(found, wanted, wanted[::-1], strict=True):
        assert (own - target).norm() < 0.3 * apart < (own - other).norm()


def test_the_losses_are_those_that_are_written_down(
    tiny: LanguageModel, tmp_path: Path, bank: dict[str, Tensor]
) -> None:
    (sample, *_) = Samples(tiny, settings(tiny, tmp_path))
    assert torch.equal(sample.adapter, bank[sample.passage.id])
    subspace = untrained_translator(tiny, tmp_path / "made").subspace
    made = sample.adapter + 0.1 * torch.randn(subspace.size, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([sample.sequence.ids])

    def scores(flat: Tensor, scale: float) -> Tensor:
        with tiny.applied({Subspace(subspace.modules, subspace.rank, scale): flat}):
            return tiny.model(input_ids=ids).logits[0, :-1]

    wanted = scores(sample.adapter, subspace.scaling).softmax(-1)
    for scaled in (True, False):
        found = scores(made, subspace.scaling if scaled else 1.0).log_softmax(-1)
        language = -found[torch.arange(len(found)), ids[0, 1:]].mean()
        divergence = (wanted * (wanted.log() - found)).sum()
        parts = [subspace.unflatten(flat) for flat in (made, sample.adapter)]
        distance = sum(functional.mse_loss(parts[0][name], parts[1][name]) for name in subspace.shapes)
        losses = losses_of(tiny, subspace, made, sample, scaled)
        torch.testing.assert_close(torch.stack(losses), torch.stack([language, divergence, distance]))


@pytest.mark.parametrize("share", ["kind", "none"])
def test_a_lora_is_what_the_perceptrons_say_of_state_and_block(tiny: LanguageModel, share: str) -> None:
    subspace = Subspace(tiny.subspace.modules, 2, 2.0)
    network = TranslatorNetwork(32, subspace, PerceptronsConfig(hidden=4, deviation=0.5, share=share))
    assert len(network.perceptrons) == (6 if share == "kind" else 2 * len(subspace.modules))
    states = torch.randn(2, 32)
    tensors = subspace.unflatten(network(states))
    for name, _, _ in subspace.modules:
        key = name.rsplit(".", 1)[-1] if share == "kind" else name.replace(".", "/")
        block = float(name.split(".")[2])
        for factor in ("A", "B"):
            first, _, second = network.perceptrons[f"{key}/{factor}"]  # type: ignore[misc]
            read = torch.cat([states[1], torch.tensor([block])])
            expected = second.weight @ (first.weight @ read).clamp_min(0)
            torch.testing.assert_close(tensors[f"{name}.{factor}"][1].flatten(), expected)


def test_the_state_is_the_last_hidden_one_at_the_last_token(tiny: LanguageModel, passages: list[Passage]) -> None:
    ids = [*tiny.bos, *tiny.encode(tiny.config.prompts.atom_text(passages[0]))]
    for most, read in ((200, ids), (16, ids[:16])):
        output = tiny.model(input_ids=torch.tensor([read]), output_hidden_states=True)
        torch.testing.assert_close(state_of(tiny, passages[0], most), output.hidden_states[-1][0, -1])


class Keeper(Silent):
    """Keeps the checkpoint of one step, and ends the run there."""

    def __init__(self, folder: Path, last: int) -> None:
        self._folder, self._last = folder, last

    def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
        if checkpoint.state.step == self._last:
            checkpoint.save(self._folder)
            raise KeyboardInterrupt


@pytest.mark.usefixtures("bank")
def test_a_run_that_was_stopped_gives_the_same_bits_and_one_that_is_continued_begins_there(
    tiny: LanguageModel, tmp_path: Path
) -> None:
    config = settings(tiny, tmp_path, checkpoints={"every": 3}, sequences="all")
    whole = translator_in_process(config)

    def run(listener: Silent, checkpoint: Path | None) -> Translator:
        learner, samples = TranslatorLearner(tiny, config), Samples(tiny, config)
        return learner.product(train_on(learner, samples, config, listener, checkpoint=nullcontext(checkpoint)))

    with pytest.raises(KeyboardInterrupt):
        run(Keeper(tmp_path / "kept", 3), None)
    again = run(Silent(), tmp_path / "kept")
    assert (again.digest, again.notes["losses"]) == (whole.digest, whole.notes["losses"])
    whole.save(tmp_path / "whole")
    assert Translator.load(tmp_path / "whole").digest == whole.digest
    child = TranslatorLearner(tiny, settings(tiny, tmp_path, start_from=str(tmp_path / "whole"), seed=5))
    assert all(torch.equal(child.network.state_dict()[name], value) for name, value in whole.tensors().items())
    other = settings(tiny, tmp_path, start_from=str(tmp_path / "whole"), network={"hidden": 8})
    with refused(MethodError, "translator_of_another_network"):
        TranslatorLearner(tiny, other)


def test_what_is_saved_is_what_is_loaded_and_damage_is_found(
    tiny: LanguageModel, tmp_path: Path, passages: list[Passage]
) -> None:
    made = untrained_translator(tiny, tmp_path / "made", notes={"steps": 1})
    loaded = Translator.load(tmp_path / "made")
    assert (loaded.digest, loaded.notes, loaded.subspace) == (made.digest, {"steps": 1}, made.subspace)
    assert torch.equal(loaded.lora_of(tiny, passages[0]), made.lora_of(tiny, passages[0]))
    card = json.loads((tmp_path / "made" / CARD).read_text())
    for changes in ({"scaled": False}, {"states": 31}, {"bank": "other"}, {"network": {"hidden": -1}}):
        (tmp_path / "made" / CARD).write_text(json.dumps(card | changes))
        with refused(MethodError, "translator_damaged"):
            Translator.load(tmp_path / "made")
    (tmp_path / "made" / CARD).write_text(json.dumps(card | {"format": 9}))
    with refused(MethodError, "translator_other_format", found=9, expected=1):
        Translator.load(tmp_path / "made")
    with refused(MethodError, "translator_not_found"):
        Translator.load(tmp_path / "nowhere")
    torch.nn.init.constant_(made.network.perceptrons["up_proj/A"][0].weight, float("nan"))  # type: ignore[index]
    made.save(tmp_path / "nan")
    with refused(MethodError, "translator_damaged"):
        Translator.load(tmp_path / "nan")


@pytest.mark.usefixtures("bank")
def test_adapters_of_another_base_rank_or_projection_are_refused_and_passages_without_one_are_left_out(
    tiny: LanguageModel, tmp_path: Path, world: World
) -> None:
    items = augmented(world, 5)
    (tmp_path / "augmented.jsonl").write_bytes(encode_augmented(items))
    samples = Samples(tiny, settings(tiny, tmp_path))
    assert (len(samples), samples.left_out) == (3, 2)
    assert len(Samples(tiny, settings(tiny, tmp_path, sequences="all"))) == 15
    (tmp_path / "augmented.jsonl").write_bytes(encode_augmented(items[3:]))
    with refused(TrainingError, "nothing_to_train_on"):
        Samples(tiny, settings(tiny, tmp_path))
    for modules, rank in ((tiny.subspace.modules, 3), (tiny.subspace.modules[:3], 2)):
        untrained_translator(tiny, tmp_path / "parent", Subspace(modules, rank, 2.0))
        with refused(MethodError, "translator_of_other_adapters"):
            TranslatorLearner(tiny, settings(tiny, tmp_path, start_from=str(tmp_path / "parent")))
    static = static_lora(tiny, 2, tmp_path / "lora")
    adapter_bank(tiny, world, str(tmp_path / "upon"), static)
    with refused(MethodError, "adapters_of_another_base"):
        TranslatorLearner(tiny, settings(tiny, tmp_path, bank=str(tmp_path / "upon")))
    with refused(MethodError, "wrong_bank"):
        samples_digest(settings(tiny, tmp_path, bank=str(tmp_path / "nowhere")))
    uneven = Subspace((("a.0.up", 4, 4), ("a.1.up", 4, 5)), 1, 1.0)
    with refused(ModelError, "projections_differ", module="a.1.up"):
        TranslatorNetwork(4, uneven, PerceptronsConfig())


@pytest.mark.usefixtures("bank")
def test_a_step_that_is_not_finite_changes_nothing(tiny: LanguageModel, tmp_path: Path) -> None:
    config = settings(tiny, tmp_path)
    learner = TranslatorLearner(tiny, config)
    before = learner.network.state_dict()["perceptrons.up_proj/A.0.weight"].clone()
    (sample, *_) = Samples(tiny, config)
    bad = replace(sample, adapter=torch.full_like(sample.adapter, torch.nan))
    assert learner.step([bad], 1.0).loss is None
    assert torch.equal(learner.network.state_dict()["perceptrons.up_proj/A.0.weight"], before)
    assert learner.step([sample], 1.0).loss is not None
