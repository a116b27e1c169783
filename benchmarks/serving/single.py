"""One question at a time, in this process, by every method: what each part of it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from subjects import Subject
from torch import Tensor

from regrad.bank.format import Layout
from regrad.bank.reader import BankReader
from regrad.bank.writer import BankWriter
from regrad.data.passages import Passage
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Finished
from regrad.methods.registry import METHODS
from regrad.methods.regrad import BoundMetaInit
from regrad.models.subspace import Update


@dataclass(frozen=True)
class Way:
    """One row of the table: a method of regrad with so many passages. Slow ways are run on fewer questions."""

    name: str
    method: str
    k: int
    slow: bool = False


DIRECT = Way("Direct", "direct", 0)
CACHED = Way("ReGrad cached, k=3", "regrad", 3)
RAG = Way("RAG, k=3", "rag", 3, slow=True)
ONLINE = Way("ReGrad Online, k=3", "regrad-online", 3, slow=True)
WAYS = (
    DIRECT,
    CACHED,
    Way("ReGrad cached, k=5", "regrad", 5),
    RAG,
    Way("ReGrad + ICL, k=3", "regrad+icl", 3, slow=True),
    ONLINE,
)


@dataclass
class Timing:
    """One question: milliseconds of the whole and of its parts, and the processor's time for the whole."""

    total: float = 0.0
    processor: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Single:
    """A subject with a bank in memory; atoms are noise, as their values make no difference to time."""

    def __init__(self, subject: Subject, folder: str, codec: str, new_tokens: int) -> None:
        lm = subject.lm
        self._passages, self._new_tokens, self._device = subject.passages, new_tokens, lm.device
        self._bound = BoundMetaInit(lm, subject.meta_init)
        self._endless = replace(lm, end_ids=())  # so that all answers have the same length
        self._engine = Engine(self._endless)
        self._reader = _bank(subject, folder, codec)
        self._reader.fetch(self._passages)

    def ask(self, way: Way, number: int, question: str) -> Timing:
        """Answer one question from the passages of its number, and say what it took."""
        method, passages = METHODS[way.method], self._of(number, way.k)
        timing, clock = Timing(), Clock(self._device)
        updates: tuple[Update, ...] = ()
        if method.applies_gradients:
            total = self._computed(passages) if method.computes_gradients else self._fetched(passages)
            timing.parts["extract" if method.computes_gradients else "fetch and sum"] = clock.lap()
            updates = (self._bound.update(total, 1.0),)
            timing.parts["update"] = clock.lap()
        shown = list(reversed(passages)) if method.passages_in_prompt else []
        prompt = self._endless.config.prompts.prompt(question, shown)
        finished = self._decoded(DecodingRequest(prompt, updates, self._new_tokens, stop=()))
        timing.total, timing.processor = clock.end()
        timing.parts |= {"prefill": finished.prefill_milliseconds, "decode": finished.decode_milliseconds}
        timing.prompt_tokens, timing.completion_tokens = finished.prompt_tokens, finished.completion_tokens
        return timing

    def _of(self, number: int, k: int) -> list[Passage]:
        return [self._passages[(number + i) % len(self._passages)] for i in range(k)]

    def _fetched(self, passages: Sequence[Passage]) -> Tensor:
        found = self._reader.fetch(passages)
        assert all(item.tier == "memory" for item in found)
        return self._reader.codec.sum([item.record for item in found if item.record is not None])

    def _computed(self, passages: Sequence[Passage]) -> Tensor:
        return torch.stack([item.atom for item in self._bound.compute(passages) if item.atom is not None]).sum(0)

    def _decoded(self, request: DecodingRequest) -> Finished:
        heard: list[str | Finished | Exception] = []
        self._engine.submit(request, heard.append)
        while self._engine.active or self._engine.waiting:
            self._engine.step()
        finished = heard[-1]
        assert isinstance(finished, Finished), finished
        assert finished.completion_tokens == self._new_tokens
        return finished


class Clock:
    """Milliseconds, of the machine and of this process; a GPU's work is waited for."""

    def __init__(self, device: torch.device) -> None:
        self._wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self._wait()
        self._started = self._last = time.perf_counter()
        self._processor = time.process_time()

    def lap(self) -> float:
        """Since the last one."""
        self._wait()
        before, self._last = self._last, time.perf_counter()
        return 1e3 * (self._last - before)

    def end(self) -> tuple[float, float]:
        """Since the start: of the machine, of this process."""
        self._wait()
        return 1e3 * (time.perf_counter() - self._started), 1e3 * (time.process_time() - self._processor)


def _bank(subject: Subject, folder: str, codec: str) -> BankReader:
    start = subject.meta_init
    layout = Layout(fingerprint=start.fingerprint, codec=codec, subspace=start.subspace.to_json())  # type: ignore[arg-type]
    writer = BankWriter(folder, layout)
    noise = torch.Generator().manual_seed(2)
    for passage in subject.passages:
        writer.add_atom(passage.id, passage.text_hash, 1e-3 * torch.randn(start.subspace.size, generator=noise))
    writer.commit()
    return BankReader(folder, start.fingerprint)
