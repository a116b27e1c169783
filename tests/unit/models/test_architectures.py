"""Every row of the table of model families, on a small random model of each kind: right, or refused with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion
from regrad.errors import ModelError
from regrad.gradients.extractor import encode_passage, passage_batch, passage_gradients
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.meta_init import MetaInit
from regrad.models.architectures import ARCHITECTURES, Architecture
from regrad.models.batching import sequence_losses, share_lower_blocks
from regrad.models.loading import LanguageModel
from regrad.models.packing import packed_batch
from regrad.training.meta.collate import collate
from regrad.training.meta.config import InnerConfig, StrategyConfig
from regrad.training.meta.strategies import make_strategy
from tests.tools.decoded import run, update
from tests.tools.random_models import loaded, random_gemma3, random_model
from tests.tools.refusals import refused
from tests.unit.gradients.test_extractor import autograd_atom, relative_error
from tests.unit.models.test_lora import merged_weights
from tests.unit.training.meta.test_meta_gradient import at, naive, relative

ROOT = Path(__file__).parents[3]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
STATES = {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16}

# What a kind needs beside the usual sizes. Every window is shorter than the prompts.
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "smollm3": {
        "use_sliding_window": True,
        "sliding_window": 12,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "mistral": {"sliding_window": 12},
    "qwen2": {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12, "final_logit_softcapping": 3.0},
    "gemma3": {"sliding_window": 12},
    "gemma3_text": {"head_dim": 8, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": 12},
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"head_dim": 8, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4, "sliding_window": 12},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "olmoe": EXPERTS,
    "mamba2": STATES,
    "rwkv": {"attention_hidden_size": 32},
    "lfm2": {},
    "llama4_text": {"num_local_experts": 2, "head_dim": 8},
    "bloom": {"n_head": 4, "n_layer": 2},
}
ROWS = [(row, kind) for row in ARCHITECTURES.values() for kind in row.model_types]
LOADED = [pytest.param(row, kind, id=kind) for row, kind in ROWS if not row.refused]
REFUSED = [pytest.param(row, kind, id=kind) for row, kind in ROWS if row.refused and kind in SETTINGS]

PROMPTS = ["Question: Where was Les Dripen born?\nAnswer:", "The quick brown fox jumps over a lazy dog. " * 3, "a"]
PASSAGES = [
    Passage("a", "Ada", "Ada was born in London and lived there for a long time with all of her friends."),
    Passage("b", "Les", "Les Dripen is a jeweler."),
]
TASKS = [Task(tuple(PASSAGES), (TaskQuestion("Where was Ada born?", "London", (0, 1)),))]


def model(kind: str) -> PreTrainedModel:
    return random_gemma3(**SETTINGS[kind]) if kind == "gemma3" else random_model(kind, **SETTINGS[kind])


def test_every_row_has_a_model_here_and_every_kind_is_one_of_transformers() -> None:
    for row in ARCHITECTURES.values():
        assert not row.refused or any(kind in SETTINGS for kind in row.model_types), f"{row.family} has no model here"
        assert row.refused or all(kind in SETTINGS for kind in row.model_types), (
            f"{row.family} has kinds without a model"
        )
        assert set(row.model_types) <= set(CONFIG_MAPPING)
    kinds = [kind for _, kind in ROWS]
    assert len(kinds) == len(set(kinds))


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kind"), LOADED)
def test_a_family_is_adapted_decoded_and_trained_rightly(
    row: Architecture, kind: str, tiny: LanguageModel, tmp_path: Path
) -> None:
    """On all projections of its row. One model serves all parts, as making one takes as long as they do."""
    lm = loaded(model(kind), tiny, tmp_path, (*row.mlp, *row.attention))
    assert lm.architecture is row
    assert len(lm.subspace.modules) == (len(row.mlp) + len(row.attention)) * (2 if kind == "gemma3" else 1)
    assert lm.blocks.lower, "the lower blocks are shared between passes"
    updates = [update(lm, seed, 0.1)[0].vector for seed in (1, 2, 3)]
    check_batched_updates(lm, torch.stack(updates))
    check_atoms(lm, updates[0])
    check_answers(lm, updates)
    check_training_step(lm)
    check_packed_rows(lm)


def test_an_adapter_of_transposed_weights_is_what_peft_reads(tiny: LanguageModel, tmp_path: Path) -> None:
    """PEFT's own GPT-2, with what a MetaInit of it writes."""
    lm = loaded(model("gpt2"), tiny, tmp_path / "base", ("c_fc", "mlp.c_proj"))
    phi = update(lm, 1, 0.1)[0].vector
    MetaInit(lm.config, lm.identity(), lm.subspace, phi, torch.ones(len(lm.subspace.shapes))).save(tmp_path / "init")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "init"))
    ids = torch.tensor([[5, 9, 7, 11]])
    with torch.no_grad(), lm.lora.applied(phi):
        torch.testing.assert_close(lm.logits(lm.hidden(ids)), peft.eval()(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


def check_batched_updates(lm: LanguageModel, updates: Tensor) -> None:
    """Each row of a batch gives what the model gives with the row's update merged into its weights."""
    ids = torch.randint(3, 900, (len(updates), 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with lm.lora.applied(updates):
            together = lm.logits(lm.hidden(ids))
        for row in range(len(updates)):
            merged = merged_weights(lm, updates[row])
            alone = functional_call(lm.model, merged, kwargs={"input_ids": ids[row : row + 1]}).logits[0]
            assert relative_error(together[row], alone) < 1e-4
            assert relative_error(lm.model(input_ids=ids[row : row + 1]).logits[0], alone) > 1e-2


def check_atoms(lm: LanguageModel, phi: Tensor) -> None:
    """Atoms of passages of different lengths in one batch are what autograd gives for each one alone."""
    batch = passage_batch(lm, [encode_passage(lm, passage) for passage in PASSAGES])
    atoms, _ = passage_gradients(lm, phi, batch)
    for atom, passage in zip(atoms, PASSAGES, strict=True):
        assert relative_error(atom, autograd_atom(lm, phi, passage)) < 1e-4


def check_answers(lm: LanguageModel, updates: list[Tensor]) -> None:
    """The engine's answers, in one batch and piece by piece, are those of the model with merged weights."""
    requests = [DecodingRequest(p, lm.subspace.updates(u), 8, stop=()) for p, u in zip(PROMPTS, updates, strict=True)]
    answers = [heard.text for heard in run(Engine(lm, prefill_tokens=9), requests)]
    assert answers == [merged_answer(lm, request) for request in requests]
    assert len(set(answers)) > 1


@torch.inference_mode()
def merged_answer(lm: LanguageModel, request: DecodingRequest) -> str:
    """What transformers' own `generate` writes after the update was written into the weights."""
    [applied] = request.updates
    before = {name: lm.model.get_parameter(name).clone() for name in merged_weights(lm, applied.vector)}
    ids = torch.tensor([lm.encode_prompt(request.prompt)])
    try:
        for name, weight in merged_weights(lm, applied.vector).items():
            lm.model.get_parameter(name).copy_(weight)
        written = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            eos_token_id=lm.eos,
            pad_token_id=lm.pad_id,
        )
    finally:
        for name, weight in before.items():
            lm.model.get_parameter(name).copy_(weight)
    return str(lm.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def check_packed_rows(lm: LanguageModel) -> None:
    """Two questions that begin alike, shorter than the window, and another, in two rows and in three."""
    assert lm.packs
    groups = [[([5, 6, 7, 8, 9, 30, 31], 6), ([5, 6, 7, 8, 9, 40, 41, 42], 7)], [([50, 51, 52], 1)]]
    found = []
    for batch in (packed_batch(lm, groups), packed_batch(lm, [[one] for group in groups for one in group])):
        batch = share_lower_blocks(lm, batch, 10**6)
        phi = at(lm).phi0.requires_grad_()
        with lm.lora.applied(phi):
            losses = sequence_losses(lm, batch)
            found.append(torch.cat([losses.detach(), torch.autograd.grad(losses.square().sum(), phi)[0]]))
    assert relative(found[0], found[1]) < 1e-4


def check_training_step(lm: LanguageModel) -> None:
    """The meta-gradient, which shares the lower blocks' output, is what autograd gives through merged weights."""
    _, expected, _ = naive(lm, TASKS, step_size=0.01)
    found = make_strategy(StrategyConfig(name="hvp"), InnerConfig())(lm, at(lm, 0.01), collate(lm, TASKS))
    assert relative(found.phi0, expected) < 1e-3


@pytest.mark.parametrize(("row", "kind"), REFUSED)
def test_a_refused_family_is_refused_with_its_reason(
    row: Architecture, kind: str, tiny: LanguageModel, tmp_path: Path
) -> None:
    with refused(ModelError, "unsupported_family", family=row.family, reason=row.refused):
        loaded(model(kind), tiny, tmp_path)


def test_the_document_has_this_table() -> None:
    """A row that is missing, changed or too many is a difference; this is what must stand there."""
    document = (ROOT / "docs" / "models.md").read_text()
    found = [line for line in document.splitlines() if line.startswith("|")]
    assert found == [*HEAD, *(documented(row) for row in ARCHITECTURES.values())]


HEAD = [
    "| family | `model_type` | projections | loads | atoms | decoding | training |",
    "|---|---|---|---|---|---|---|",
]


def documented(row: Architecture) -> str:
    kinds = ", ".join(f"`{kind}`" for kind in row.model_types)
    if row.refused:
        return f"| {row.family} | {kinds} | | refused: {row.refused} | | | |"
    projections = "; ".join(", ".join(f"`{name}`" for name in names) for names in (row.mlp, row.attention) if names)
    return f"| {row.family} | {kinds} | {projections} | yes | yes | yes | yes |"
