"""Trained LoRAs for tests: one for all questions, and a bank of one for each of three passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from regrad.bank.format import Layout
from regrad.bank.writer import BankWriter
from regrad.data.passages import Passage
from regrad.lab.world import World
from regrad.methods.prag import adapters_base, adapters_layout
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.subspace import Subspace
from regrad.training.lora.batched import AdapterTrainer
from regrad.training.lora.config import AdapterConfig
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.lora.soft_prompt import SoftPrompt
from regrad.training.predictor.artifact import UpdatePredictor
from regrad.training.predictor.config import ContextConfig, NetworkConfig
from regrad.training.predictor.network import UpdateNetwork
from regrad.training.translator.artifact import Translator
from regrad.training.translator.config import PerceptronsConfig
from regrad.training.translator.network import TranslatorNetwork
from tests.tools.augmenting import augmented

ADAPTER = AdapterConfig(lr=1e-2, alpha=4.0)


def static_lora(lm: LanguageModel, rank: int, path: Path, seed: int = 4) -> StaticLora:
    subspace = SubspaceConfig(rank=rank, alpha=3.0 * rank)
    small = load_language_model(lm.config.model_copy(update={"subspace": subspace}), "cpu")
    values = 0.1 * torch.randn(small.subspace.size, generator=torch.Generator().manual_seed(seed))
    lora = StaticLora(small.config, small.identity(), small.subspace, values)
    lora.save(path)
    return lora


def drawn_soft_prompt(lm: LanguageModel, path: Path, tokens: int = 4, seed: int = 6) -> SoftPrompt:
    """A soft prompt that changes answers."""
    weight = lm.model.get_input_embeddings().weight  # type: ignore[operator]
    drawn_ND = torch.randn(tokens, weight.shape[1], generator=torch.Generator().manual_seed(seed))
    made = SoftPrompt(lm.config, lm.identity(), drawn_ND * float(weight.std()))
    made.save(path)
    return made


def untrained_predictor(lm: LanguageModel, static: StaticLora, path: Path, **changes: Any) -> UpdatePredictor:
    """A predictor whose updates are as large as W0, and a constant that is not zero."""
    config = NetworkConfig(hidden=8, code=4, basis=2)
    states = int(lm.text_config.hidden_size)
    network = UpdateNetwork(states, static.subspace, config, seed=3)
    constant = 0.1 * torch.randn(static.subspace.size, generator=torch.Generator().manual_seed(9))
    made = UpdatePredictor(
        lm.config, lm.identity(), static.digest, "factors", ContextConfig(), config, network, states, constant
    )
    made = replace(made, **changes)
    made.save(path)
    return made


def untrained_translator(lm: LanguageModel, path: Path, subspace: Subspace | None = None, **changes: Any) -> Translator:
    """A translator whose LoRAs change answers, of adapters like `ADAPTER`."""
    subspace = subspace or Subspace(lm.subspace.modules, ADAPTER.rank, ADAPTER.scaling)
    config = PerceptronsConfig(hidden=8, deviation=0.2)
    states = int(lm.text_config.hidden_size)
    network = TranslatorNetwork(states, subspace, config, seed=3)
    bank = adapters_layout(subspace, lm.identity())
    made = Translator(lm.config, lm.identity(), bank, True, 200, config, network, states)
    made = replace(made, **changes)
    made.save(path)
    return made


def generated_bank(lm: LanguageModel, made: Translator, uri: str, passages: Sequence[Passage]) -> list[Passage]:
    """What a translator makes of passages in a bank, in float32; the passages."""
    fingerprint, subspace = adapters_layout(made.subspace, lm.identity()), made.subspace.to_json()
    layout = Layout(kind="adapter", fingerprint=fingerprint, translator=made.digest, codec="float32", subspace=subspace)
    writer = BankWriter(uri, layout)
    for passage in passages:
        writer.add_atom(passage.id, passage.text_hash, made.lora_of(lm, passage))
    writer.commit()
    return list(passages)


def adapter_bank(
    lm: LanguageModel, world: World, uri: str, static: StaticLora | None = None, layers: Literal["all"] | None = None
) -> tuple[Subspace, dict[str, Tensor], list[Passage]]:
    """Trained adapters of three passages in a bank; on `layers`, not on those of the model's own subspace."""
    layers = lm.config.subspace.model_copy(update={"layers": layers or lm.config.subspace.layers})
    model = load_language_model(lm.config.model_copy(update={"subspace": layers}), "cpu")
    trainer = AdapterTrainer(model, ADAPTER, static)
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
