"""The adapters of each question's passages in force while one LoRA is trained, as they will be when it is asked.

PRAG's fine-tuned form learns to answer with its retrieved adapters; they stay as they are. They are read here and not
by an `AtomProvider` (`methods.atoms`): a batch needs each adapter apart, since every one has factors of its own, and of
the policies for a missing one only `fewer` and `fail` can be followed while something is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regrad.bank.format import Layout, Manifest, current_version, read_manifest
from regrad.bank.io.prag import Frame, adapter_fingerprint
from regrad.bank.reader import BankReader
from regrad.data.passages import Passage
from regrad.data.tasks import read_tasks
from regrad.errors import AtomNotFound, MethodError
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace
from regrad.storage import Storage
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import Example

logger = logging.getLogger(__name__)


def adapters_manifest(config: FinetuneConfig) -> Manifest | None:
    """The manifest of the bank of adapters that the settings name, if they do; raises as `bank_of_adapters`."""
    return bank_of_adapters(config.adapters, config.adapters_version) if config.adapters is not None else None


def bank_of_adapters(uri: str, version: int | None = None) -> Manifest:
    """The manifest of a bank of adapters, of the current version if none is given; raises `MethodError` if it is no
    such bank.
    """
    storage = Storage(uri)
    version = version or current_version(storage)
    manifest = read_manifest(storage, version) if version is not None else None
    if manifest is None or manifest.kind != "adapter":
        found = f"it holds {manifest.kind}s" if manifest else "there is no bank"
        raise MethodError(
            f"a bank of adapters is expected at {uri}, but {found}; fill one with `regrad adapters`",
            code="wrong_bank",
            expected="adapter",
            found=manifest.kind if manifest else None,
        )
    return manifest


def check_trained_on_base_alone(lm: LanguageModel, uri: str, manifest: Layout) -> None:
    """Raise `MethodError` unless the adapters of the bank at `uri` were trained on this model, and nothing beside."""
    bases = (lm.identity(), lm.config.path)  # an imported bank may name its base by its path
    if manifest.fingerprint not in {adapter_fingerprint(Frame(base, manifest.parsed_subspace())) for base in bases}:
        raise MethodError(
            f"the adapters in the bank at {uri} were not trained on top of the base model alone and these weights; "
            "train them with `regrad adapters`",
            code="adapters_of_another_base",
            uri=uri,
            base="the base model alone",
        )


@dataclass(frozen=True)
class Coverage:
    """How many of the passages of all questions (the first k of each) the bank has no adapter of."""

    passages: int
    missing: int
    first: str = ""

    def __str__(self) -> str:
        return f"{self.missing} of {self.passages} passages without an adapter"


def check_coverage(config: FinetuneConfig, manifest: Manifest) -> Coverage:
    """Look up every passage before anything is trained, and say how many have no adapter.

    Raises `AtomNotFound` if some have none and the policy is `fail`, and `MethodError` if none at all has one.
    """
    seen: dict[tuple[str, str], bool] = {}
    with BankReader(config.adapters or "", None, manifest.version) as reader:
        for task in read_tasks(config.tasks or ""):
            for question in task.questions:
                for place in question.context[: config.k]:
                    passage = task.passages[place]
                    key = passage.id, passage.text_hash
                    if key not in seen:
                        seen[key] = has_adapter(reader, passage)
    missing = [passage_id for (passage_id, _), found in seen.items() if not found]
    coverage = Coverage(len(seen), len(missing), missing[0] if missing else "")
    if missing and (len(missing) == len(seen) or config.on_missing == "fail"):
        text = (
            f"the bank at {config.adapters} has no adapter of {coverage.missing} of the {coverage.passages} passages "
            f"that come with the questions (the first is {coverage.first!r:.80}), or only of other texts; train them "
            "with `regrad adapters`"
        )
        numbers = {"uri": config.adapters, "missing": coverage.missing, "passages": coverage.passages}
        if len(missing) == len(seen):
            raise MethodError(text, code="bank_of_other_passages", **numbers)
        more = ", or set on_missing=fewer to train without them"
        raise AtomNotFound(text + more, code="adapters_missing", **numbers)
    if missing:
        logger.warning("%s: they are left out (the first: %.80r)", coverage, coverage.first)
    return coverage


def has_adapter(reader: BankReader, passage: Passage) -> bool:
    """Whether a bank has an adapter of this passage with this text."""
    location = reader.locate(passage.id)
    return location is not None and location.entry.belongs_to(passage.text_hash)


class AdaptersInForce:
    """Reads what is applied beside the trained LoRA.

    Raises `MethodError` if the adapters were not trained on top of this model alone.
    """

    def __init__(self, lm: LanguageModel, config: FinetuneConfig, manifest: Manifest) -> None:
        self._lm = lm
        self._reader = BankReader(config.adapters or "", None, manifest.version)
        self._each = manifest.parsed_subspace()
        check_trained_on_base_alone(lm, config.adapters or "", manifest)

    def __call__(self, examples: Sequence[Example]) -> list[tuple[Subspace, Tensor]]:
        """The adapters [N, p] of each example's first passage, of its second, and so on; zeros where there is none."""
        found = [self._of(example) for example in examples]
        places = max((len(rows) for rows in found), default=0)
        parts_KNP = torch.zeros(places, len(examples), self._each.size)
        for number, rows in enumerate(found):
            parts_KNP[: len(rows), number] = rows
        return [(self._each, part_NP.to(self._lm.device)) for part_NP in parts_KNP]

    def _of(self, example: Example) -> Tensor:
        known = [passage for passage in example.passages if has_adapter(self._reader, passage)]
        return self._reader.read(known).float() if known else torch.zeros(0, self._each.size)
