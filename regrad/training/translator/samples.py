"""What a translator learns from: a passage, its trained adapter, and a sequence that the adapter was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regrad.bank.reader import BankReader
from regrad.data.augmented import Augmented, read_augmented
from regrad.data.passages import Passage
from regrad.digests import records_digest
from regrad.errors import TokenOutOfVocabulary, TrainingError
from regrad.models.loading import LanguageModel
from regrad.training.lora.config import AdapterConfig
from regrad.training.lora.examples import Example, adapter_examples
from regrad.training.lora.in_force import bank_of_adapters, has_adapter
from regrad.training.translator.config import TranslatorConfig


@dataclass(frozen=True)
class Sample:
    """A passage, its adapter [P], and a sequence about it, predicted as a whole."""

    passage: Passage
    adapter: Tensor
    sequence: Example


class Samples(Sequence[Sample]):
    """The samples of a file of augmented passages, made from their records on access.

    Passages without an adapter, and sequences that do not fit the model, are left out; `left_out` says how many
    passages lack either. Raises `CorpusError` for a bad record, and `TrainingError` if nothing is left.
    """

    def __init__(self, lm: LanguageModel, config: TranslatorConfig) -> None:
        self._lm, self._config = lm, config
        self._reader = BankReader(config.bank, None, bank_of_adapters(config.bank, config.bank_version).version)
        self._settings = AdapterConfig(answers=config.answers, max_tokens=config.max_tokens)
        self._places: list[tuple[Augmented, int]] = []
        self.left_out = 0
        for item in read_augmented(config.corpus):
            fitting = self._fitting(item) if has_adapter(self._reader, item.passage) else []
            self.left_out += not fitting
            self._places += [(item, n) for n in (fitting if config.sequences == "all" else fitting[:1])]
        if not self._places:
            raise TrainingError(
                f"none of the {self.left_out} passages in {config.corpus} has both an adapter in the bank at "
                f"{config.bank} and a sequence that fits the model; train them with `regrad adapters` on this corpus",
                code="nothing_to_train_on",
                uri=config.corpus,
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        item, place = self._places[number]
        sequence = adapter_examples(self._lm, item, self._settings)[place]
        return Sample(item.passage, self._reader.read([item.passage])[0], sequence)

    def _fitting(self, item: Augmented) -> list[int]:
        try:
            found = adapter_examples(self._lm, item, self._settings)
        except TokenOutOfVocabulary:
            return []
        limit = self._lm.within(self._config.max_tokens)
        return [n for n, example in enumerate(found) if example.predicts and len(example.ids) <= limit]


def samples_digest(config: TranslatorConfig) -> dict[str, str]:
    """What identifies the data of a run: the bank's version, and a hash of the augmented passages.

    Reads all of them, so that their faults are known before a model is loaded. Raises `MethodError` if there is no bank
    of adapters, and `CorpusError` for a bad record.
    """
    corpus = records_digest(read_augmented(config.corpus))
    return {"bank": bank_of_adapters(config.bank, config.bank_version).label, "corpus": corpus}
