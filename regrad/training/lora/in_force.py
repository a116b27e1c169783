"""The adapters of each question's passages in force while one LoRA is trained, as they will be when it is asked.

PRAG's fine-tuned form learns to answer with its retrieved adapters; they stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regrad.bank.format import Manifest, current_version, read_manifest
from regrad.bank.io.prag import Frame, adapter_fingerprint
from regrad.bank.reader import BankReader
from regrad.errors import MethodError
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace
from regrad.storage import Storage
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import Example


def adapters_manifest(config: FinetuneConfig) -> Manifest | None:
    """The manifest of the bank of adapters that the settings name; raises `MethodError` if it is no such bank."""
    if config.adapters is None:
        return None
    storage = Storage(config.adapters)
    version = config.adapters_version or current_version(storage)
    manifest = read_manifest(storage, version) if version is not None else None
    if manifest is None or manifest.kind != "adapter":
        found = f"it holds {manifest.kind}s" if manifest else "there is no bank"
        raise MethodError(
            f"a bank of adapters is expected at {config.adapters}, but {found}; fill one with `regrad adapters`",
            code="wrong_bank",
            expected="adapter",
            found=manifest.kind if manifest else None,
        )
    return manifest


class AdaptersInForce:
    """Reads what is applied beside the trained LoRA.

    Raises `MethodError` if the adapters were not trained on top of this model alone.
    """

    def __init__(self, lm: LanguageModel, config: FinetuneConfig, manifest: Manifest) -> None:
        self._lm = lm
        self._reader = BankReader(config.adapters or "", None, manifest.version)
        self._each = manifest.parsed_subspace()
        bases = (lm.identity(), lm.config.path)  # an imported bank may name its base by its path
        if manifest.fingerprint not in {adapter_fingerprint(Frame(base, self._each)) for base in bases}:
            raise MethodError(
                f"the adapters in the bank at {config.adapters} were not trained on top of the base model alone and "
                "these weights; train them with `regrad adapters`",
                code="adapters_of_another_base",
                uri=config.adapters,
                base="the base model alone",
            )

    def __call__(self, examples: Sequence[Example]) -> list[tuple[Subspace, Tensor]]:
        """The adapters [N, p] of each example's first passage, of its second, and so on; zeros where there is none."""
        found = [self._of(example) for example in examples]
        places = max((len(rows) for rows in found), default=0)
        parts_KNP = torch.zeros(places, len(examples), self._each.size)
        for number, rows in enumerate(found):
            parts_KNP[: len(rows), number] = rows
        return [(self._each, part_NP.to(self._lm.device)) for part_NP in parts_KNP]

    def _of(self, example: Example) -> Tensor:
        known = []
        for passage in example.passages:
            location = self._reader.locate(passage.id)
            if location is not None and location.entry.belongs_to(passage.text_hash):
                known.append(passage)
        return self._reader.read(known).float() if known else torch.zeros(0, self._each.size)
