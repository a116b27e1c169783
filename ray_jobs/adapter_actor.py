"""The actor that trains adapters. In a module of its own: a job's main module is pickled by value."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
from torch import Tensor

from ray_jobs.block_actor import BlockActor
from ray_jobs.cluster import device
from regrad.adaptation.adapters import AdapterTrainer, model_for_adapters
from regrad.adaptation.augmented import Augmented, parse_augmented
from regrad.adaptation.static import StaticLora
from regrad.bank.codecs import Codec, codec_for
from regrad.config import AdaptersConfig
from regrad.corpus import Passage
from regrad.language_model.loading import load_language_model


class AdapterActor(BlockActor):
    """Trains an adapter for each passage of a block."""

    def __init__(self, settings: dict[str, Any], base: int | None) -> None:
        self._config = AdaptersConfig.model_validate(settings)
        self._block: dict[str, Augmented] = {}
        super().__init__(self._config.bank.uri, base)

    def settings(self) -> dict[str, Any]:
        """See `BlockActor`."""
        settings = self._config.model_dump(mode="json", include={"adapter", "model", "seed"})
        static = self._static.digest if self._static else None
        return {**settings, "codec": self._config.bank.codec, "static": static}

    def parse(self, line: bytes, problem: str) -> Passage:
        """See `BlockActor`."""
        item = parse_augmented(line, problem)
        self._block.setdefault(item.passage.id, item)
        return item.passage

    def label(self) -> str:
        """See `BlockActor`: an adapter depends on the rewrites and questions, too."""
        return repr(self._block)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """See `BlockActor`."""
        self._block = {}
        return super().__call__(batch)

    def extract(self, passages: Sequence[Passage]) -> list[tuple[Tensor | None, str]]:
        """See `BlockActor`."""
        trained = self._trainer.train([self._block[passage.id] for passage in passages])
        return [
            (None if item.values is None else self._codec.encode(item.values[None])[0], item.problem)
            for item in trained
        ]

    @cached_property
    def _static(self) -> StaticLora | None:
        return StaticLora.load(self._config.static) if self._config.static else None

    @cached_property
    def _trainer(self) -> AdapterTrainer:
        config = self._config
        lm = load_language_model(model_for_adapters(config.model, config.adapter, self._static), device())
        return AdapterTrainer(lm, config.adapter, self._static, config.seed, config.rows)

    @cached_property
    def _codec(self) -> Codec:
        return codec_for(self._config.bank.codec, self._trainer.subspace)
