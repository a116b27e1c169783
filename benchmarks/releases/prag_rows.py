"""PRAG: the sequences of a passage, what a training makes of its adapter, and the merge of three."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from regrad.data.augmented import Augmented
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace, load_adapter, save_adapter
from regrad.training.lora.batched import AdapterTrainer
from regrad.training.lora.config import AdapterConfig
from regrad.training.lora.examples import adapter_examples
from regrad.training.lora.lora_artifact import join
from releases.code import Release, lazy_imports
from releases.rows import Row, of_largest, of_norms
from releases.subject import PRAG_PROMPTS, Subject, load

CHANGE = "PRAG: change of an adapter"
_MERGED = 3


def rows(release: Release, subject: Subject, count: int) -> Iterator[Row]:
    """Every comparison with the PRAG release."""
    adapter = AdapterConfig(rank=2, alpha=32, lr=3e-4)
    layers = SubspaceConfig(rank=2, alpha=32, layers="all")
    config = subject.shipped.model_copy(update={"prompts": PRAG_PROMPTS, "subspace": layers})
    lm, items = load(config), subject.augmented(count)
    trainer = AdapterTrainer(lm, adapter)
    start = trainer.subspace.initial(42)
    folder = subject.folder / "prag"
    authors = _Authors(release, subject, folder)
    (folder / "base_weight").mkdir(parents=True)
    save_adapter(folder / "base_weight", lm.config.path, trainer.subspace, start)

    yield _sequences(authors, lm, items)
    theirs = [authors.trained(item, number, trainer.subspace) for number, item in enumerate(items)]
    ours = [found.values for found in trainer.train(items) if found.values is not None]
    ended = PRAG_PROMPTS.model_copy(update={"end_token": True})
    shipped = load(lm.config.model_copy(update={"prompts": ended}))
    default = AdapterTrainer(shipped, AdapterConfig(rank=2, alpha=32, lr=3e-4)).train(items)
    others = [found.values for found in default if found.values is not None]
    changes = [_changes(found, theirs, start) for found in (ours, others)]
    worst = max(of_largest(a, b)[0] for a, b in zip(ours, theirs, strict=True))
    yield Row(
        CHANGE, len(items), worst, max(changes[0]), "norm, of the change", max(changes[1]), "default: an end token"
    )
    yield _merge(authors, theirs, trainer.subspace, lm)


class _Authors:
    """The release's functions on our base."""

    def __init__(self, release: Release, subject: Subject, folder: Path) -> None:
        self.release, self.folder, self.base = release, folder, subject.base
        self.tokenizer = AutoTokenizer.from_pretrained(subject.base)
        # The release's transformers returned a list of ids where today's returns a dictionary.
        self.tokenizer.apply_chat_template = functools.partial(self.tokenizer.apply_chat_template, return_dict=False)
        self.arguments = argparse.Namespace(
            augment_model="lab", with_cot=False, per_device_train_batch_size=1, num_train_epochs=1, learning_rate=3e-4
        )

    def model(self) -> Any:
        """The base, with the attention that ours uses."""
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32, attn_implementation="eager")

    def sequences(self, item: Augmented) -> list[list[int]]:
        """Token ids of what an adapter is trained on."""
        with lazy_imports(self.release):
            found = self.release.encode.get_train_data("lab", [_record(item)], self.tokenizer, self.arguments)
        return [list(ids) for ids in found]

    def trained(self, item: Augmented, number: int, subspace: Subspace) -> Tensor:
        """The adapter of one passage [p]."""
        folder = self.folder / f"passage_{number}"
        with lazy_imports(self.release):
            self.release.encode.train(
                item.pairs[0].question, [_record(item)], self.arguments, self.model(), self.tokenizer,
                str(self.folder / "base_weight"), str(folder),
            )  # fmt: skip
        return load_adapter(folder, subspace)

    def merged(self, subspace: Subspace) -> list[Tensor]:
        """What the merge of the first adapters adds to each weight, as `inference.py` merges them."""
        model: Any = PeftModel.from_pretrained(self.model(), str(self.folder / "passage_0"), adapter_name="0")
        for number in range(1, _MERGED):
            model.load_adapter(str(self.folder / f"passage_{number}"), adapter_name=str(number))
        names = [str(number) for number in range(_MERGED)]
        model.add_weighted_adapter(names, [1] * _MERGED, adapter_name="merge", combination_type="cat")
        layers = [model.base_model.model.get_submodule(name) for name, _, _ in subspace.modules]
        return [layer.get_delta_weight("merge").detach() for layer in layers]


def _record(item: Augmented) -> dict[str, Any]:
    pairs = [{"question": pair.question, "answer": pair.answer, "full_answer": pair.full_answer} for pair in item.pairs]
    return {"passage": item.passage.text, "lab_rewrite": item.rewrites[0], "lab_qa": pairs}


def _sequences(authors: _Authors, lm: LanguageModel, items: Sequence[Augmented]) -> Row:
    theirs = [ids for item in items for ids in authors.sequences(item)]
    ours = [list(example.ids) for item in items for example in adapter_examples(lm, item, AdapterConfig())]
    other = float(sum(a != b for a, b in zip(ours, theirs, strict=True)))
    return Row("PRAG: sequences, token ids", len(theirs), other, other / len(theirs), "sequences that differ", 1.0)


def _changes(ours: Sequence[Tensor], theirs: Sequence[Tensor], start: Tensor) -> list[float]:
    return [of_norms(a - start, b - start) for a, b in zip(ours, theirs, strict=True)]


def _merge(authors: _Authors, adapters: Sequence[Tensor], subspace: Subspace, lm: LanguageModel) -> Row:
    """delta W = scaling * B A of the adapters side by side in one LoRA, against PEFT's own."""
    ((target, values),) = join([(subspace, values) for values in adapters[:_MERGED]]).items()
    joined = target.unflatten(values)
    found = []
    for (name, _, _), theirs in zip(subspace.modules, authors.merged(subspace), strict=True):
        ours = target.scaling * (joined[f"{name}.B"] @ joined[f"{name}.A"])
        found.append(of_largest(ours, theirs))
    return Row(
        f"PRAG: merge of {_MERGED} adapters, delta W", len(found), max(a for a, _ in found), max(r for _, r in found),
        "of the largest number", note="PEFT's add_weighted_adapter, as inference.py calls it",
    )  # fmt: skip
