"""Fixtures that several tests share: a random two-block Llama with the lab's tokenizer, and the lab's own base."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_timeout
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import settings
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from regrad.data.passages import Passage
from regrad.lab.config import LabWriterConfig
from regrad.lab.question_writer import make_writer
from regrad.lab.wording import LAB_PROMPTS
from regrad.lab.world import Split, World, passage
from regrad.meta_init import MetaInit
from regrad.models.config import ModelConfig, SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.settings import builtin_config, load_settings
from tests import DEFAULT_THRESHOLDS
from tests.tools.fork_server import forked_workers
from tests.tools.patience import watch

torch.set_num_threads(1)
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there before the first test stays: the search for the tests' garbage need not go through it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*DEFAULT_THRESHOLDS)


def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool:
    """Instead of pytest-timeout's own timer, whose seconds are the same on every machine."""
    watch(item, settings)
    return True


@pytest.fixture(autouse=True)
def empty_memory() -> None:
    """`memory://` is one store for a whole process: what a test left there would be another's."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def forked() -> Iterator[None]:
    """Workers of Ray start without their imports (see `tests.tools.fork_server`)."""
    with forked_workers():
        yield


@pytest.fixture(scope="session")
def world() -> World:
    return World(split=Split())


@pytest.fixture(scope="session")
def passages(world: World) -> list[Passage]:
    rng = random.Random(5)
    return [passage(person, rng) for person in world.held_out[:12]]


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised Llama with grouped-query attention, saved in Hugging Face format."""
    folder = tmp_path_factory.mktemp("tiny")
    lab = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(lab.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    lab.tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture
def tiny(tiny_path: Path) -> LanguageModel:
    """The random model with LoRA of rank 4 on the upper half of its blocks."""
    config = ModelConfig(path=str(tiny_path), prompts=LAB_PROMPTS, subspace=SubspaceConfig(rank=4, alpha=8))
    return load_language_model(config, "cpu")


@pytest.fixture
def tiny64(tiny: LanguageModel) -> Iterator[LanguageModel]:
    """The same in float64 throughout, for comparisons to 1e-8.

    transformers computes norms and eager softmax in float32 whatever the model's type, which alone costs 1e-8;
    torch's own RMSNorm and scaled-dot-product attention (its math kernel) do not.
    """
    tiny.model.double()
    tiny.model.set_attn_implementation("sdpa")
    norms = [(name, module) for name, module in tiny.model.named_modules() if isinstance(module, LlamaRMSNorm)]
    for name, module in norms:
        exact = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
        tiny.model.set_submodule(name, exact.requires_grad_(False))
    with sdpa_kernel(SDPBackend.MATH):
        yield tiny


@pytest.fixture(scope="session")
def lab_model() -> LanguageModel:
    return load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")


@pytest.fixture
def meta_init(tiny: LanguageModel) -> MetaInit:
    """A MetaInit of the random model in which nothing is zero, and step sizes differ."""
    size, tensors = tiny.subspace.size, len(tiny.subspace.shapes)
    generator = torch.Generator().manual_seed(1)
    phi0 = torch.randn(size, generator=generator) * 0.1
    return MetaInit(tiny.config, tiny.identity(), tiny.subspace, phi0, torch.rand(tensors, generator=generator) + 0.5)


@pytest.fixture(scope="session")
def writer_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The lab's base after a few steps of learning to write questions: it writes right ones and wrong ones."""
    path = str(tmp_path_factory.mktemp("writer") / "writer")
    settings = [f"output={path}", "steps=60", "batch_size=6", "lr=2e-3"]
    make_writer(load_settings(LabWriterConfig, builtin_config("jobs/lab-writer.yaml"), settings))
    return path
