from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regrad.data.passages import Passage
from regrad.lab.config import LabEncoderConfig
from regrad.lab.encoder import write_encoder
from regrad.retrieval.config import EncoderConfig
from regrad.retrieval.encoder import Encoder


def made(folder: Path, seed: int) -> Encoder:
    write_encoder(LabEncoderConfig(output=str(folder), seed=seed, dimensions=256))
    return Encoder(EncoderConfig(path=str(folder)), "cpu")


@pytest.mark.slow
def test_the_ordinary_loader_opens_it_and_texts_that_share_words_are_near(tmp_path: Path) -> None:
    encoder = made(tmp_path / "encoder", 0)
    notes = [Passage("a", "Anna", "works as a baker in the city."), Passage("b", "Boris", "studied at a university.")]
    asked = encoder.encode_questions(["Who works as a baker?", "Who studied at the university?"])
    similar = asked @ encoder.encode_passages(notes).T
    assert similar.argmax(1).tolist() == [0, 1]
    assert np.allclose(np.linalg.norm(asked, axis=1), 1)


def test_it_is_a_function_of_its_seed(tmp_path: Path) -> None:
    digests = [made(tmp_path / str(number), seed).digest() for number, seed in enumerate((0, 0, 1))]
    assert digests[0] == digests[1] != digests[2]
