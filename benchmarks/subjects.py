"""What the extraction benchmark measures on: a model, a point in its subspace and passages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from meta_step import ONE_B, Shape, random_model

from regrad.data.passages import Passage
from regrad.gradients.extractor import encode_passage
from regrad.lab.world import World, passage
from regrad.meta_init import MetaInit, random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.settings import builtin_config, load_settings

SHRUNKEN = Shape(256, 1024, 4, 8, 2, 4096)


@dataclass(frozen=True)
class Subject:
    """One model with what is run on it; `suffix` marks its figures."""

    name: str
    suffix: str
    meta_init: MetaInit
    lm: LanguageModel
    passages: Sequence[Passage]
    batch_tokens: Sequence[int]
    repeats: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each passage."""
        return [len(encode_passage(self.lm, item)) for item in self.passages]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.lm.compute_dtype


def lab_subject(device: torch.device, passages: int, repeats: int) -> Subject:
    """The lab's base and its held-out people."""
    lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), device)
    return Subject("lab", "", _point(lm), lm, _people(passages), (256, 1024, 2048), repeats)


def big_subject(device: torch.device, passages: int, repeats: int, shrunken: bool) -> Subject:
    """A Llama with the shape of Llama-3.2-1B, or a small one, and random weights; passages of five people each."""
    shape, on_gpu = SHRUNKEN if shrunken else ONE_B, device.type == "cuda"
    lm = random_model(shape, "bfloat16" if on_gpu else "float32", device)
    people = _people(5 * passages)
    groups = [people[start : start + 5] for start in range(0, len(people), 5)]
    long = [Passage(group[0].id, group[0].title, " ".join(item.text for item in group)) for group in groups]
    name = "shrunken" if shrunken else "1B shape"
    return Subject(name, "_1b", _point(lm), lm, long, (2048, 8192, 16384) if on_gpu else (256, 1024), repeats)


def _people(count: int) -> list[Passage]:
    rng = random.Random(0)
    return [passage(person, rng) for person in World().held_out[:count]]


def _point(lm: LanguageModel) -> MetaInit:
    """A start in which B is not zero, or the gradients of A would be."""
    start = random_meta_init(lm, 1.0)
    noise = torch.randn(start.phi0.shape, generator=torch.Generator().manual_seed(1))
    return replace(start, phi0=start.phi0 + 0.01 * noise)
