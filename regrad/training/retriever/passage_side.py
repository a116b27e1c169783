"""The passages' encoder in training, and the vectors that are searched meanwhile, which grow old and are made anew.

Candidates are found by the vectors of an encoder as it was some steps ago; their scores, and gradients, are of the
encoder as it is now. Every so many steps its weights are handed to a `Refresher`, and some steps later what it made of
them takes the place of the old vectors: at steps that the settings name, so that a resumed run does the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from regrad.data.passages import Passage
from regrad.errors import Interrupted, RegradError, TrainingError
from regrad.retrieval.embedding import Vectors, embed
from regrad.retrieval.encoder import Encoder
from regrad.training.retriever.candidates import PassageVectors
from regrad.training.retriever.config import PassageTrainingConfig
from regrad.training.workers import Workers

_PREFIX = "passages."
Weights = dict[str, Tensor]


class Refresher(Protocol):
    """Makes the vectors of all passages of an index, beside training or in its place."""

    def start(self, encoder: Encoder) -> None:
        """Begin to make the vectors of this encoder as it is now; called on all workers."""

    def wait(self) -> None:
        """Return when they are made, on the worker that began them; raises what went wrong."""

    def read(self) -> Vectors:
        """The vectors [N, D] in the corpus's order, on every worker once they are made; raises `RegradError`."""


def mapped(blocks: Iterable[Vectors], dimensions: int) -> Vectors:
    """Vectors of blocks as one array [N, D] over a file without a name, so that they need not fit in memory."""
    count = 0
    with tempfile.TemporaryFile() as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)
            count += len(block)
        file.flush()
        # The mapping keeps the file after it is closed.
        return np.memmap(file, dtype=np.float32, mode="r+", shape=(count, dimensions))


class RefresherHere:
    """In this process: training stands still meanwhile."""

    def __init__(self, blocks: Iterable[Sequence[Passage]]) -> None:
        self._blocks = [list(block) for block in blocks]
        self._made: Vectors | None = None

    def start(self, encoder: Encoder) -> None:
        """See `Refresher`; it is done at once."""
        self._made = mapped((embed(block, encoder) for block in self._blocks), encoder.dimensions)

    def wait(self) -> None:
        """See `Refresher`."""

    def read(self) -> Vectors:
        """See `Refresher`."""
        assert self._made is not None
        return self._made


def other_corpus(index: str, passage_id: str) -> TrainingError:
    """The error for a corpus that parts from that of its index at this passage."""
    return TrainingError(
        f"passages.corpus is not the corpus of the index at {index}: from passage {passage_id!r:.80} on it has others, "
        "or in another order",
        code="other_corpus",
        passage_id=passage_id,
    )


@dataclass(frozen=True)
class Refresh:
    """New vectors taken in at `step`, made of the encoder at `made_at`: what they changed of what is found.

    `overlap` is the share of the k nearest passages of a batch's questions that are the same by old and new vectors.
    """

    step: int
    made_at: int
    overlap: float


class PassageSide:
    """One worker's passages' encoder, its vectors in use, and those that are being made."""

    def __init__(
        self,
        encoder: Encoder,
        vectors: PassageVectors,
        config: PassageTrainingConfig,
        refresher: Refresher,
        workers: Workers,
    ) -> None:
        self.encoder, self.module, self.vectors = encoder, encoder.passages_module, vectors
        self._config, self._refresher, self._workers = config, refresher, workers
        self._in_use: tuple[int, Weights | None] = (0, None)  # the index's own vectors need no weights
        self._pending: tuple[int, Weights] | None = None
        self.refreshes: list[Refresh] = []

    def age(self, step: int) -> int:
        """The steps since the weights that the vectors in use were made of."""
        return step - self._in_use[0]

    def before(self, step: int, queries: Callable[[], Tensor], k: int) -> bool:
        """What is due before this step: to begin new vectors, to take them in. Nothing else has happened in the step.

        Gives whether others are in use from this step on. `queries` gives vectors [B, D], with which old and new ones
        are compared by their k nearest. Raises `Interrupted` on all workers if the vectors could not be made.
        """
        # A run that stopped in this very step may have taken its vectors in already.
        if step and step % self._config.every == 0 and self._pending is None and self._in_use[0] != step:
            self._pending = (step, self._weights())
            self._all(lambda: self._refresher.start(self.encoder), step)
        if self._pending is None or step < self._pending[0] + self._config.delay:
            return False
        made_at, weights = self._pending
        fresh = self._finished(step)
        shared: list[Tensor] = []
        self._all(lambda: shared.append(self._same(fresh, queries, k)), step)
        self.refreshes.append(Refresh(step, made_at, float(self._workers.mean(shared[0]))))
        self.vectors, self._in_use, self._pending = fresh, (made_at, weights), None
        return True

    @torch.no_grad()
    def _same(self, fresh: PassageVectors, queries: Callable[[], Tensor], k: int) -> Tensor:
        """The share of the k nearest that vectors in use and fresh ones have in common."""
        queries_BD = queries()
        old_Bk, new_Bk = self.vectors.nearest(queries_BD, k), fresh.nearest(queries_BD, k)
        return (old_Bk[:, :, None] == new_Bk[:, None, :]).any(2).float().mean()

    def of(self, passages: Sequence[Passage], batch_tokens: int | None = None) -> Tensor:
        """The passages' vectors by the encoder as it is now [N, D], as `Encoder.passage_vectors`."""
        return self.encoder.passage_vectors(passages, batch_tokens)

    def numbers(self, step: int) -> dict[str, float]:
        """How old the vectors in use are, and what the last ones changed, for the log."""
        latest = {"top_k_overlap": self.refreshes[-1].overlap} if self.refreshes else {}
        return {"vector_age": float(self.age(step)), **latest}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside the encoder: the weights that vectors were, and are being, made of."""
        found = {f"{_PREFIX}refreshes": torch.tensor([astuple(one) for one in self.refreshes], dtype=torch.float64)}
        kept = [("in_use", self._in_use)] + ([("pending", self._pending)] if self._pending else [])
        for name, (step, weights) in kept:
            found[f"{_PREFIX}{name}_at"] = torch.tensor(step)
            found |= {f"{_PREFIX}{name}.{key}": value.clone() for key, value in (weights or {}).items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave, once the encoder has its own weights again; vectors are made again.

        Raises `Interrupted` if they cannot be.
        """
        rows = tensors[f"{_PREFIX}refreshes"].reshape(-1, 3).tolist()
        self.refreshes = [Refresh(int(step), int(made_at), overlap) for step, made_at, overlap in rows]
        self._in_use = (int(tensors[f"{_PREFIX}in_use_at"]), _part(tensors, f"{_PREFIX}in_use."))
        now = self._weights()
        if self._in_use[1]:
            self._started_of(self._in_use[1])
            self.vectors = self._finished(self._in_use[0])
        if f"{_PREFIX}pending_at" in tensors:
            self._pending = (int(tensors[f"{_PREFIX}pending_at"]), _part(tensors, f"{_PREFIX}pending."))
            self._started_of(self._pending[1])
        self.module.load_state_dict(now)

    def _weights(self) -> Weights:
        return {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}

    def _started_of(self, weights: Weights) -> None:
        self.module.load_state_dict(weights)
        self._all(lambda: self._refresher.start(self.encoder), 0)

    def _finished(self, step: int) -> PassageVectors:
        self._all(self._refresher.wait, step)
        read: list[Vectors] = []
        self._all(lambda: read.append(self._refresher.read()), step)
        return self.vectors.like(read[0])

    def _all(self, action: Callable[[], object], step: int) -> None:
        """Do it on every worker; if it fails on one, all raise: none may go on alone, or wait for the others."""
        problem: Exception | None = None
        try:
            action()
        except Exception as error:  # whatever it is: the others wait for this worker, and the state is whole
            problem = error
        found = self._workers.failure(problem, self.vectors.device)
        if found is not None:
            reason = str(found) if isinstance(found, RegradError | OSError) else f"{type(found).__name__}: {found}"
            raise Interrupted(
                f"the index could not be refreshed at step {step}: {reason}; the state of training is kept: run the "
                "same command again to go on from it",
                code="refresh_failed",
                step=step,
                reason=reason,
            ) from found


def _part(tensors: Mapping[str, Tensor], prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
