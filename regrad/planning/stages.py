"""The stages of an answer without a server, each over batch sizes: retrieve, load by tier, compute, prefill, decode."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice

import psutil
import torch

from regrad.bank.config import TiersConfig
from regrad.bank.reader import BankReader
from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.errors import PlanningError
from regrad.inference.decoding import outcomes
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Finished
from regrad.meta_init import MetaInit
from regrad.methods.base import AtomProvider, BankNeed, Evidence, Method, MethodSettings, open_question
from regrad.methods.policies import OnOverflow, PromptFitter
from regrad.methods.regrad import BoundMetaInit
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.placement import device_of
from regrad.planning.profile import Bank, Curve, GpuPart, Memory, StagePoint, Stages, Workload
from regrad.planning.watching import private_bytes
from regrad.retrieval.base import Retriever, open_retriever
from regrad.retrieval.config import RetrieverConfig
from regrad.retrieval.hits import Hit

_ASKED = 64
_LEAST_SECONDS, _MOST_REPEATS = 0.3, 300
_UPDATE_SOURCES = ("none", "static", "gradients")
_STEPS = 6


@dataclass(frozen=True)
class Served:
    """What a server answers from, and how one question is asked of it.

    `devices` are where a generator has its base: the processor, a GPU, or several over which it is split.
    """

    meta_init: str
    model_path: str | None
    bank: str
    bank_version: int | None
    tiers: TiersConfig
    index: str
    retrieval: RetrieverConfig
    method: MethodSettings
    on_overflow: OnOverflow
    devices: tuple[str, ...]
    threads: int
    prefill_tokens: int

    @property
    def loads(self) -> bool:
        """Whether the server's bank is read for a question."""
        return self.method.bank_need(parts=False) in (BankNeed.SUM, BankNeed.PARTS)


@dataclass(frozen=True)
class MeasuredStages:
    """The curves, and what is known now of model, bank and questions."""

    stages: Stages
    memory: Memory
    workload: Workload
    fingerprint: str
    bank: Bank


class Stopwatch:
    """Times work of this process and those that it started, until it is long enough to be believed."""

    def __init__(self, repeats: int, device: torch.device) -> None:
        self._repeats, self._device = repeats, device

    def point(self, batch: int, work: Callable[[], object]) -> StagePoint:
        """The least of the clock and the mean of the processor, after one turn to warm up; a GPU is waited for."""
        work()
        seconds: list[float] = []
        busy = _processor_seconds()
        while len(seconds) < self._repeats or (sum(seconds) < _LEAST_SECONDS and len(seconds) < _MOST_REPEATS):
            started = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - started)
        busy = (_processor_seconds() - busy) / len(seconds)
        # Other work on the machine can only make it slower: on a busy one a median was ten times the least.
        return StagePoint(batch=batch, seconds=min(seconds), busy=busy)

    def wait(self) -> None:
        """Until the GPU is idle; of a base over several it is the first, which waits for the last one's states."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _processor_seconds() -> float:
    """Of this process exactly, and of its children (a search engine's) in hundredths."""
    children = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            children += sum(child.cpu_times()[:2])
        except psutil.Error:
            continue
    return time.process_time() + children


def measure(
    served: Served,
    questions: Sequence[str],
    k: int,
    max_new_tokens: int,
    batches: Sequence[int],
    repeats: int,
    say: Callable[[str], None],
) -> MeasuredStages:
    """Measure every stage that the method has. Raises what opening model, bank or index raises."""
    process = psutil.Process().memory_info().rss
    meta_init = MetaInit.load(served.meta_init)
    lm = load_language_model(meta_init.model_at(served.model_path), served.devices)
    watch = Stopwatch(repeats, lm.device)
    asked = list(questions[:_ASKED])
    with _threads(served.threads):
        say("the stages without a server: retrieve")
        hits, retrieve, index = _retrieving(served, asked, k, batches, watch)
        say("load")
        found = [[hit.passage for hit in one] for one in hits]
        load, bank = _load_curves(served, meta_init.fingerprint, found, batches, watch)
        say("prefill and decode")
        method, atoms = _opened(served, lm, BoundMetaInit(lm, meta_init))
        fitter = PromptFitter(lm, lm.config.prompts, served.on_overflow)
        requests, planning = generator_requests(fitter, method, atoms, asked, hits, max_new_tokens, watch)
        generating = _Generating(lm, requests, served.prefill_tokens, watch)
        prefill, decode = generating.curves(batches)
        prompt_tokens, answer_tokens = generating.lengths()
    computes = served.method.info.update not in _UPDATE_SOURCES
    online = Curve(points=(planning,)) if computes else None
    stages = Stages(retrieve=retrieve, load=load, online=online, prefill=prefill, decode=decode)
    workload = Workload(
        method=served.method.name,
        k=k,
        max_new_tokens=max_new_tokens,
        prompt_tokens=prompt_tokens,
        answer_tokens=max(1.0, answer_tokens),
        atoms=k if served.loads else 0,
    )
    memory = Memory(process=process, index=index, model=model_bytes(lm), token=token_bytes(lm), parts=gpu_parts(lm))
    return MeasuredStages(stages, memory, workload, meta_init.fingerprint, bank)


def _retrieving(
    served: Served, questions: Sequence[str], k: int, batches: Sequence[int], watch: Stopwatch
) -> tuple[list[list[Hit]], Curve | None, int]:
    """What the questions find, what that takes, and the index's bytes in memory; nothing for a method without passages.

    The index is opened in any case, as a server does.
    """
    without_index = private_bytes(started=False)  # so a search engine that runs already counts, too
    with open_retriever(served.index, served.retrieval) as retriever:
        hits: list[list[Hit]] = [[] for _ in questions]
        curve = None
        if served.method.info.retrieves:
            hits = retriever.search(questions, k)
            curve = _retrieve_curve(retriever, questions, k, batches, watch)
        return hits, curve, max(0, private_bytes() - without_index)


def _retrieve_curve(
    retriever: Retriever, questions: Sequence[str], k: int, batches: Sequence[int], watch: Stopwatch
) -> Curve:
    """One search after the other, as a replica of the server does it."""

    def search(count: int) -> Callable[[], None]:
        turns = cycle(questions)

        def work() -> None:
            for question in islice(turns, count):
                retriever.search([question], k)

        return work

    return Curve(points=tuple(watch.point(count, search(count)) for count in batches))


def _load_curves(
    served: Served, fingerprint: str, found: Sequence[Sequence[Passage]], batches: Sequence[int], watch: Stopwatch
) -> tuple[dict[str, Curve], Bank]:
    """Fetching and adding up the atoms of so many questions, with everything in the one tier."""
    no_cache = served.tiers.model_copy(update={"memory_bytes": 0, "disk": None})
    settings = {"memory": served.tiers.model_copy(update={"memory_bytes": 1 << 62}), "store": no_cache}
    if served.tiers.disk:
        settings["disk"] = served.tiers.model_copy(update={"memory_bytes": 0})
    curves: dict[str, Curve] = {}
    for tiers in settings.values():
        with BankReader(served.bank, fingerprint, served.bank_version, tiers) as reader:
            manifest = reader.manifest
            if served.loads:
                tier, curve = _load_curve(reader, [one for one in found if one], batches, watch)
                curves.setdefault(tier, curve)
    return curves, Bank(codec=manifest.codec, record_bytes=manifest.record_bytes, passages=manifest.passages)


def _load_curve(
    reader: BankReader, found: Sequence[Sequence[Passage]], batches: Sequence[int], watch: Stopwatch
) -> tuple[str, Curve]:
    """Of one reader, and the tier that its atoms came from when all had been asked for before."""
    tiers: list[Tier] = []
    for passages in found:
        reader.fetch(passages)
    turns = cycle(found)

    def load(count: int) -> Callable[[], None]:
        def work() -> None:
            for passages in islice(turns, count):
                fetched = reader.fetch(passages)
                tiers.extend(item.tier for item in fetched if item.record is not None)
                reader.codec.sum([item.record for item in fetched if item.record is not None]).to(torch.bfloat16)

        return work

    curve = Curve(points=tuple(watch.point(count, load(count)) for count in batches))
    if not tiers:
        raise PlanningError(
            f"the bank at {reader.uri} has no atom of a passage that the questions find, so loading cannot be "
            "measured; give the bank of this index, or other questions",
            code="nothing_to_load",
            uri=reader.uri,
        )
    return statistics.mode(tiers).value, curve


def _opened(served: Served, lm: LanguageModel, bound: BoundMetaInit) -> tuple[Method, AtomProvider]:
    """The method as a server opens it, with the atoms of the server's bank where it takes them from there."""
    settings = served.method
    if served.loads:
        settings = settings.model_copy(update={"bank": served.bank, "bank_version": served.bank_version})
    method = settings.open_at(bound) if settings.FOLLOWS_RELEASE else settings.open(lm)
    return method, method.open_atoms()


def generator_requests(
    fitter: PromptFitter,
    method: Method,
    atoms: AtomProvider,
    questions: Sequence[str],
    hits: Sequence[Sequence[Hit]],
    max_new_tokens: int,
    watch: Stopwatch,
) -> tuple[list[DecodingRequest], StagePoint]:
    """What a generator is asked for these questions, and what planning one of them takes."""
    evidences = [
        Evidence(open_question(question), tuple(hit.passage for hit in one), tuple(hit.score for hit in one))
        for question, one in zip(questions, hits, strict=True)
    ]
    plans = [plan for evidence in evidences for plan in method.answer_plans([evidence], atoms)]
    turns = cycle(evidences)
    planning = watch.point(1, lambda: method.answer_plans([next(turns)], atoms))
    asked = [fitter.fitted(plan, max_new_tokens) for plan in plans]
    return [DecodingRequest(one.text, one.plan.updates, max_new_tokens, ids=one.ids) for one in asked], planning


class _Generating:
    """An engine under so many requests at a time."""

    def __init__(
        self, lm: LanguageModel, requests: Sequence[DecodingRequest], prefill_tokens: int, watch: Stopwatch
    ) -> None:
        self._lm, self._requests, self._prefill_tokens, self._watch = lm, requests, prefill_tokens, watch
        self._on_gpu = lm.device.type == "cuda"

    def curves(self, batches: Sequence[int]) -> tuple[Curve, Curve]:
        """Of prefill (so many prompts and their first tokens) and of decode (one step of so many rows)."""
        first: list[StagePoint] = []
        steps: list[StagePoint] = []
        for count in batches:
            prefill, step = self._points(count)
            first.append(prefill)
            steps.append(step)
        return Curve(points=tuple(first)), Curve(points=tuple(steps))

    def lengths(self) -> tuple[float, float]:
        """Tokens of a prompt and of an answer, on average over the requests."""
        with closing(Engine(self._lm, max_rows=16, prefill_tokens=self._prefill_tokens)) as engine:
            ends = [end for end in outcomes(engine, self._requests) if isinstance(end, Finished)]
        if not ends:
            raise PlanningError("no question could be answered while measuring", code="no_answer")
        return (
            statistics.mean(one.prompt_tokens for one in ends),
            statistics.mean(one.completion_tokens for one in ends),
        )

    def _points(self, count: int) -> tuple[StagePoint, StagePoint]:
        """In one step the engine reads prompts and then decodes a token: the first is the difference to the others."""
        endless = replace(self._lm, end_ids=())  # no row leaves while steps are timed
        engine = Engine(endless, max_rows=count, prefill_tokens=max(1 << 16, self._prefill_tokens))
        turns = cycle(self._requests)
        firsts: list[tuple[float, float]] = []
        steps: list[tuple[float, float]] = []
        repeats = 0
        while repeats < 3 or sum(seconds for seconds, _ in [*firsts, *steps]) < _LEAST_SECONDS:
            asked = [replace(one, max_new_tokens=_STEPS + 2, stop=()) for one in islice(turns, count)]
            rows = [engine.submit(request, lambda _: None) for request in asked]
            timed = [self._timed(engine) for _ in range(_STEPS)]
            if repeats:
                firsts.append(timed[0])
                steps += timed[1:]
            for row in rows:
                row.cancelled = True
            engine.step()
            repeats += 1
        engine.close()
        step, first = _least(steps), _least(firsts)
        prefill = (max(0.0, first[0] - step[0]), max(0.0, first[1] - step[1]))
        return (
            StagePoint(batch=count, seconds=prefill[0], busy=prefill[1]),
            StagePoint(batch=count, seconds=step[0], busy=step[1]),
        )

    def _timed(self, engine: Engine) -> tuple[float, float]:
        started, busy = time.perf_counter(), time.process_time()
        engine.step()
        self._watch.wait()
        seconds = time.perf_counter() - started
        return seconds, seconds if self._on_gpu else time.process_time() - busy


def _least(timed: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return min(one for one, _ in timed), min(other for _, other in timed)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads as a replica has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def model_bytes(lm: LanguageModel) -> int:
    """Of the weights."""
    return sum(one.numel() * one.element_size() for one in lm.model.parameters())


def gpu_parts(lm: LanguageModel) -> tuple[GpuPart, ...]:
    """Of a base over several devices what each has, in the order of its blocks; nothing of one that is whole."""
    blocks = list(lm.architecture.block_list(lm.model)[1].children())
    held = Counter({lm.device: 0})
    for parameter in lm.model.parameters():
        held[parameter.device] += parameter.numel() * parameter.element_size()
    if len(held) == 1:
        return ()
    cached = Counter(device_of(block) for block in blocks)  # as many tokens in every block
    a_block = token_bytes(lm) // len(blocks)
    return tuple(GpuPart(model=size, token=cached[device] * a_block) for device, size in held.items())


def token_bytes(lm: LanguageModel) -> int:
    """Of the keys and values of one token, in all layers."""
    config = lm.text_config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * lm.compute_dtype.itemsize)
