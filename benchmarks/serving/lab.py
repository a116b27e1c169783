"""The lab in a folder: a MetaInit, a bank and an index of the held-out people, and questions about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regrad.bank.format import Layout
from regrad.bank.writer import BankWriter
from regrad.data.passages import Passage
from regrad.gradients.extractor import AtomExtractor
from regrad.lab.files import held_out_corpus, held_out_questions
from regrad.lab.sets import LabQuestion
from regrad.lab.world import World
from regrad.meta_init import MetaInit, random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.retrieval.bm25 import build_index
from regrad.settings import builtin_config, load_settings
from serve_app.config import ServeConfig

_STEP_SIZE = 10.0


@dataclass(frozen=True)
class Lab:
    """Where everything is, and what is in it: one passage and one question a person."""

    folder: Path
    meta_init: MetaInit
    corpus: Sequence[Passage]
    questions: Sequence[LabQuestion]

    def config(self, **values: Any) -> ServeConfig:
        """A server of it, with these settings."""
        places = {name: f"{self.folder}/{part}" for name, part in _PARTS.items()}
        return ServeConfig.model_validate({**places, **values})

    def bodies(self, **options: Any) -> list[dict[str, Any]]:
        """A request for each question."""
        return [{"question": item.question, "method": "regrad", "k": 3, **options} for item in self.questions]


_PARTS = {"meta_init": "meta-init", "bank": "bank", "index": "index"}


@contextmanager
def lab(meta_init: str, questions: int = 400) -> Iterator[Lab]:
    """The lab, made in a temporary folder with the MetaInit at a path, or with an untrained one."""
    with TemporaryDirectory() as name:
        folder, world = Path(name), World()
        start, lm = _start(meta_init)
        start.save(folder / "meta-init")
        corpus = held_out_corpus(world)
        fill_bank(f"{folder}/bank", lm, start, corpus)
        build_index(corpus, f"{folder}/index")
        yield Lab(folder, start, corpus, held_out_questions(world, questions))


def _start(path: str) -> tuple[MetaInit, LanguageModel]:
    """Answers under an untrained start are mostly wrong, but cost what right ones cost."""
    if path:
        loaded = MetaInit.load(path)
        return loaded, load_language_model(loaded.model, "cpu")
    lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    return random_meta_init(lm, _STEP_SIZE), lm


def fill_bank(
    uri: str, lm: LanguageModel, start: MetaInit, passages: Sequence[Passage], codec: str = "float32"
) -> None:
    """A bank with every passage's atom."""
    layout = Layout(fingerprint=start.fingerprint, codec="float32", subspace=start.subspace.to_json())
    writer = BankWriter(uri, layout)
    for passage, found in zip(passages, AtomExtractor(lm, start).extract(passages), strict=True):
        assert found.atom is not None, found.problem
        writer.add_atom(passage.id, passage.text_hash, found.atom)
    writer.commit()
