"""`encoder.json`: what a dense index says of its vectors and of the encoder that they are of."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from regrad.errors import RetrievalError
from regrad.retrieval.config import EncoderConfig
from regrad.settings import Settings

FILE = "encoder.json"


class TrainedQuestions(Settings):
    """The encoder of questions that was trained for the vectors: its digest, and what its training noted."""

    digest: str
    notes: dict[str, Any] = Field(default_factory=dict)

    @property
    def temperature(self) -> float | None:
        """What the training divided scores by before the softmax over candidates, if it noted that."""
        settings = self.notes.get("settings")
        found = settings.get("temperature") if isinstance(settings, dict) else None
        return float(found) if isinstance(found, int | float) and found > 0 else None


class EncoderCard(Settings):
    """Which encoder made the vectors (settings, digest), how many dimensions they have, how they are searched."""

    encoder: EncoderConfig
    digest: str
    dimensions: int = Field(ge=1)
    vectors: Literal["flat", "hnsw", "ivf-pq"]
    question_encoder: TrainedQuestions | None = None

    def encoded(self) -> str:
        """The content of the file."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"


def read_encoder_card(data: bytes, where: str) -> EncoderCard:
    """From a file's content; raises `RetrievalError` naming the index it is of if that is not what was written."""
    try:
        return EncoderCard.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise RetrievalError(
            f"{FILE} of the index at {where} is damaged: {reason}; restore it, or make the index again",
            code="damaged",
            file=FILE,
        ) from error
