"""The actors that fill a bank: blocks of passages in, shards with gradients or adapters out.

They are used by two jobs, and a job's main module is pickled by value, so they are not in either of them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import pyarrow as pa
from torch import Tensor

from ray_jobs.cluster import model_devices, node_name
from ray_jobs.corpus_blocks import encode_error
from regrad.bank.builder import BUILT, BlockBuilder
from regrad.bank.codecs import Codec, codec_for
from regrad.bank.config import BuildConfig
from regrad.bank.format import read_manifest, table
from regrad.data.augmented import Augmented, parse_augmented
from regrad.data.jsonl import shown
from regrad.data.passages import Passage, parse_passage
from regrad.data.questions import Question
from regrad.errors import BankError, CorpusError, ModelError, RegradError
from regrad.gradients.extractor import AtomExtractor
from regrad.meta_init import MetaInit, read_card
from regrad.models.loading import LanguageModel, load_language_model
from regrad.storage import Storage
from regrad.training.lora.batched import AdapterTrainer
from regrad.training.lora.config import AdaptersConfig
from regrad.training.lora.examples import adapter_demonstrations
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.translator.artifact import Translator

_OF_BLOCK = {
    **{"read_bytes": pa.int64(), "computed": pa.int64(), "seconds": pa.float64()},
    **{"node": pa.string(), "failure": pa.string()},
}
_RESULT = pa.schema([*BUILT, *(pa.field(name, kind) for name, kind in _OF_BLOCK.items())])


class BlockActor(ABC):
    """An actor: a block of the corpus in; one shard and its receipt written; the result of each passage out."""

    def __init__(self, uri: str, base: int | None) -> None:
        self._uri, self._base = uri, base
        self._builder: BlockBuilder | None = None
        self._computed, self._seconds = 0, 0.0

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the bytes of an atom depend on besides the passage."""

    @abstractmethod
    def extract(self, passages: Sequence[Passage]) -> list[tuple[Tensor | None, str]]:
        """For each passage its encoded atom, or the reason why there is none."""

    def parse(self, line: bytes, problem: str) -> Passage:
        """The passage of one line; raises `CorpusError` for a bad one."""
        return parse_passage(line, problem)

    def label(self) -> str:
        """What the atoms of the block that was just parsed depend on besides passages and settings."""
        return ""

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A table `_RESULT`. An error of ours is returned as data: Ray Data would lose it."""
        read = sum(batch["read_bytes"].to_pylist())
        self._computed, self._seconds = 0, 0.0
        try:
            self._builder = self._builder or self._make_builder()
            passages, refused = self._parse(batch)
            built = self._builder.build(passages, refused, self.label())
        except (RegradError, OSError) as error:
            return self._result(BUILT.empty_table(), read, encode_error(error))
        return self._result(built, read)

    def _make_builder(self) -> BlockBuilder:
        storage = Storage(self._uri)
        base = read_manifest(storage, self._base) if self._base else None
        return BlockBuilder(storage, self.settings(), self._timed, base)

    def _timed(self, passages: Sequence[Passage]) -> list[tuple[Tensor | None, str]]:
        started = time.perf_counter()
        extracted = self.extract(passages)
        self._computed, self._seconds = self._computed + len(passages), self._seconds + time.perf_counter() - started
        return extracted

    def _result(self, built: pa.Table, read_bytes: int, failure: str | None = None) -> pa.Table:
        """The rows, and one more for the block itself."""
        values = (read_bytes, self._computed, self._seconds, node_name(), failure)
        block = table(_RESULT, {name: [value] for name, value in zip(_OF_BLOCK, values, strict=True)})
        return pa.concat_tables([built, block], promote_options="default").select(_RESULT.names)

    def _parse(self, batch: pa.Table) -> tuple[list[Passage], list[tuple[str, str]]]:
        """The passages; and for each bad line its beginning and the reason."""
        passages: list[Passage] = []
        refused: list[tuple[str, str]] = []
        for line, problem in zip(batch["line"].to_pylist(), batch["problem"].to_pylist(), strict=True):
            try:
                passages.append(self.parse(line, problem))
            except CorpusError as error:
                refused.append((shown(line), f"not a passage: {error}"))
        return passages, refused


class GradientActor(BlockActor):
    """Computes gradients at a MetaInit."""

    def __init__(self, settings: dict[str, Any], base: int | None) -> None:
        self._config = BuildConfig.model_validate(settings)
        super().__init__(self._config.bank.uri, base)

    def settings(self) -> dict[str, Any]:
        """See `BlockActor`."""
        config = self._config
        return {
            "fingerprint": read_card(config.meta_init)["fingerprint"],
            "codec": config.bank.codec,
            "batch_tokens": config.batch_tokens,
            "max_passage_tokens": config.max_passage_tokens,
        }

    def extract(self, passages: Sequence[Passage]) -> list[tuple[Tensor | None, str]]:
        """See `BlockActor`."""
        return [(item.record, item.problem) for item in self._extractor.extract(passages, self._codec.encode)]

    @cached_property
    def _extractor(self) -> AtomExtractor:
        """Created when the first passage needs it: a build with nothing to compute loads no model."""
        config, meta_init = self._config, self._meta_init
        lm = load_language_model(meta_init.model_at(config.model_path), model_devices())
        return AtomExtractor(lm, meta_init, config.batch_tokens, config.max_passage_tokens)

    @cached_property
    def _meta_init(self) -> MetaInit:
        return MetaInit.load(self._config.meta_init)

    @cached_property
    def _codec(self) -> Codec:
        return codec_for(self._config.bank.codec, self._meta_init.subspace)


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
        shown = [asdict(question) for question in self._demonstrations]
        # By content: another adapter may lie at the same place tomorrow.
        start = {"start": self._trainer.start_digest} if self._config.start_from else {}
        return {**settings, "codec": self._config.bank.codec, "static": static, "demonstrations": shown, **start}

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
    def _demonstrations(self) -> list[Question]:
        return adapter_demonstrations(self._config)

    @cached_property
    def _trainer(self) -> AdapterTrainer:
        config = self._config
        lm = load_language_model(config.model, model_devices())
        shown = self._demonstrations
        return AdapterTrainer(lm, config.adapter, self._static, config.seed, config.rows, shown, config.start_from)

    @cached_property
    def _codec(self) -> Codec:
        return codec_for(self._config.bank.codec, self._trainer.subspace)


class TranslatorActor(BlockActor):
    """Generates an adapter for each passage of a block, in the way that `dyprag` does for a question."""

    def __init__(self, settings: dict[str, Any], base: int | None, digest: str) -> None:
        self._config = AdaptersConfig.model_validate(settings)
        self._digest = digest
        super().__init__(self._config.bank.uri, base)

    def settings(self) -> dict[str, Any]:
        """See `BlockActor`."""
        model = self._config.model.model_dump(mode="json")
        return {"translator": self._translator.digest, "model": model, "codec": self._config.bank.codec}

    def extract(self, passages: Sequence[Passage]) -> list[tuple[Tensor | None, str]]:
        """See `BlockActor`."""
        lm, translator = self._lm, self._translator
        codec = codec_for(self._config.bank.codec, translator.subspace)

        def generated(passage: Passage) -> tuple[Tensor | None, str]:
            try:
                return codec.encode(translator.lora_of(lm, passage)[None])[0], ""
            except (ModelError, BankError) as error:  # a token that the model lacks, or a number that is not finite
                return None, str(error)

        return [generated(passage) for passage in passages]

    @cached_property
    def _lm(self) -> LanguageModel:
        return load_language_model(self._config.model, model_devices())

    @cached_property
    def _translator(self) -> Translator:
        """The one that the bank's manifest will name: it may have been trained anew since the job began."""
        uri = self._config.translator or ""
        translator = Translator.load(uri)
        if translator.digest != self._digest:
            raise BankError(
                f"the translator at {uri} was {self._digest} when this job began and is {translator.digest} now; "
                "run the same command again",
                code="translator_changed",
                uri=uri,
                expected=self._digest,
                found=translator.digest,
            )
        return translator
