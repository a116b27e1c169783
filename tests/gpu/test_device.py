"""The library on a GPU gives what it gives on a CPU, within the bounds of its arithmetic.

Skipped where there is no GPU. `REGRAD_TEST_DEVICE=cpu` runs them on the CPU, to see that the tests themselves hold.
"""

from __future__ import annotations

import os

import pytest
import torch

from regrad.data.passages import Passage
from regrad.gradients.extractor import AtomExtractor
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.meta_init import MetaInit, random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.settings import builtin_config, load_settings
from tests.tools.decoded import PROMPTS, run, update

DEVICE = os.environ.get("REGRAD_TEST_DEVICE", "cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU here"),
]


def lab(device: str, dtype: str = "float32") -> LanguageModel:
    config = load_settings(ModelConfig, builtin_config("models/lab.yaml"), [f"dtype={dtype}"])
    return load_language_model(config, device)


def requests_of(lm: LanguageModel) -> list[DecodingRequest]:
    """Without and with updates, of different lengths."""
    updates = [(), update(lm, 1, 0.02), update(lm, 2, 0.02)]
    return [DecodingRequest(text, updates[i % 3], 4 + i) for i, text in enumerate(p for p in PROMPTS for _ in range(3))]


def test_every_request_of_a_batch_gets_the_answer_of_the_cpu() -> None:
    here, there = lab("cpu"), lab(DEVICE)
    expected = [item.text for item in run(Engine(here), requests_of(here))]
    assert [item.text for item in run(Engine(there), requests_of(there))] == expected
    assert len(set(expected)) > 3


def test_bf16_rows_do_not_depend_on_their_neighbours() -> None:
    """In bf16 a sum's order may tip a choice between tokens that are nearly equal: most rows, not all."""
    there = lab(DEVICE, "bfloat16")
    requests = requests_of(there)
    together = [item.text for item in run(Engine(there), requests)]
    alone = [run(Engine(there), [request])[0].text for request in requests]
    same = sum(one == other for one, other in zip(together, alone, strict=True))
    assert same >= 0.8 * len(requests), (together, alone)


def test_atoms_are_those_of_the_cpu(passages: list[Passage]) -> None:
    """In float32: sums of a few thousand products, in another order."""
    here, there = lab("cpu"), lab(DEVICE)
    expected = AtomExtractor(here, start(here)).extract(passages)
    found = AtomExtractor(there, start(there)).extract(passages)
    for one, other in zip(found, expected, strict=True):
        assert one.atom is not None
        assert other.atom is not None
        torch.testing.assert_close(one.atom.cpu(), other.atom, rtol=1e-3, atol=1e-5 * float(other.atom.abs().max()))


@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="there are no two GPUs here")
def test_a_base_split_over_two_gpus_answers_as_on_one(passages: list[Passage]) -> None:
    """The same kernels on the same kind of GPU: to the last bit, but for what chooses its algorithm by free memory."""
    config = load_settings(ModelConfig, builtin_config("models/lab.yaml"), ["dtype=float32"])
    one, both = lab(DEVICE), load_language_model(config, ["cuda:0", "cuda:1"] if DEVICE == "cuda" else [DEVICE] * 2)
    places = {str(parameter.device) for parameter in both.model.parameters()}
    assert places == ({"cuda:0", "cuda:1"} if DEVICE == "cuda" else {DEVICE})
    assert both.identity() == one.identity()
    expected = [item.text for item in run(Engine(one), requests_of(one))]
    assert [item.text for item in run(Engine(both), requests_of(both))] == expected
    found, atoms = (AtomExtractor(lm, start(lm)).extract(passages) for lm in (both, one))
    for there, here in zip(found, atoms, strict=True):
        assert there.atom is not None
        assert here.atom is not None
        torch.testing.assert_close(there.atom, here.atom, rtol=1e-4, atol=1e-6 * float(here.atom.abs().max()))


def start(lm: LanguageModel) -> MetaInit:
    return random_meta_init(lm, 0.1, 3)
