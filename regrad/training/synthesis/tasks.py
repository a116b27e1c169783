"""From drafts to meta-training tasks: what only the whole corpus can tell, and the rings that tasks are made of.

A task is a ring of passages, each with its questions. A question rests on its passage, alone or with its neighbours in
the ring. Every passage of a ring has questions of its own, so its gradient is shared by several contexts: meta-training
differentiates it once. Where the caller brings search results, a question has to find its own passage (a round trip, as
in Promptagator, Dai et al. 2022: a question that names its subject wrongly or not at all does not), and neighbours are
mostly passages that were found beside it.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from regrad.evaluation.answer_parsing.statements import normalise
from regrad.training.synthesis.config import SynthesisConfig
from regrad.training.synthesis.writer import Draft, Pair, Rejected

AMBIGUOUS = "asked of several passages with different answers"
SAME_ID = "passage id occurs more than once"
NOT_FOUND = "the question does not find its passage"
SURPLUS = "more questions than are kept"

_NEAR_FRACTION = 0.7


Hits = Mapping[str, Sequence[str]]
"""For a question, the ids of the passages that a search for it finds, best first."""


def settle(drafts: Sequence[Draft], config: SynthesisConfig, hits: Hits | None = None) -> list[Draft]:
    """The drafts in the same order, with the pairs that are kept: found, unambiguous and not too many a passage."""
    unique = _without_repeated_ids(drafts)
    answers: dict[str, set[str]] = defaultdict(set)
    for draft in unique:
        for pair in draft.pairs:
            answers[normalise(pair.question)].add(normalise(pair.answer))
    return [_settle(draft, answers, config, hits) for draft in unique]


def _settle(draft: Draft, answers: Mapping[str, set[str]], config: SynthesisConfig, hits: Hits | None) -> Draft:
    draft = draft.without([pair for pair in draft.pairs if len(answers[normalise(pair.question)]) > 1], AMBIGUOUS)
    if hits is not None:
        lost = [pair for pair in draft.pairs if draft.passage.id not in hits[pair.question][: config.max_rank]]
        draft = draft.without(lost, NOT_FOUND)
    kept = _varied(draft.pairs, config.questions)
    return draft.without([pair for pair in draft.pairs if pair not in kept], SURPLUS)


def _without_repeated_ids(drafts: Sequence[Draft]) -> list[Draft]:
    seen: set[str] = set()
    result = []
    for draft in drafts:
        repeated = draft.candidates > 0 and draft.passage.id in seen
        seen.update([draft.passage.id] if draft.candidates else [])
        result.append(replace(draft, pairs=(), rejected=(Rejected(SAME_ID),)) if repeated else draft)
    return result


def _varied(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """The first pair of each answer, then the second of each, and so on, until there are enough."""
    turns: Counter[str] = Counter()
    ranked = []
    for position, pair in enumerate(pairs):
        ranked.append((turns[normalise(pair.answer)], position, pair))
        turns[normalise(pair.answer)] += 1
    return [pair for _, _, pair in sorted(ranked, key=lambda item: item[:2])[:count]]


def tasks(drafts: Sequence[Draft], config: SynthesisConfig, hits: Hits | None = None) -> Iterator[dict[str, Any]]:
    """Task records over the drafts that have pairs, each in `config.tasks_per_passage` of them."""
    by_id = {draft.passage.id: draft for draft in drafts if draft.pairs}
    near = {draft.passage.id: _near(draft, hits or {}) for draft in by_id.values()}
    for turn in range(config.tasks_per_passage):
        rng = random.Random(f"{config.seed}/{turn}")
        for ring in _rings(list(by_id), config.passages_per_task, near, rng):
            neighbours = config.neighbours if rng.random() < config.neighbours_fraction else 0
            yield _task(f"{ring[0]}/{turn}", [by_id[passage_id] for passage_id in ring], neighbours)


def _near(draft: Draft, hits: Hits) -> list[str]:
    found = [passage_id for pair in draft.pairs for passage_id in hits.get(pair.question, ())]
    return [passage_id for passage_id in dict.fromkeys(found) if passage_id != draft.passage.id]


def _rings(ids: Sequence[str], size: int, near: Mapping[str, Sequence[str]], rng: random.Random) -> Iterator[list[str]]:
    """All ids in rings; a passage is mostly followed by one that is near it, if one of those is left."""
    left = dict.fromkeys(rng.sample(ids, len(ids)))
    while left:
        ring = [_take(left, next(iter(left)))]
        while left and len(ring) < size:
            close = [other for other in near.get(ring[-1], ()) if other in left]
            follows = close and rng.random() < _NEAR_FRACTION
            ring.append(_take(left, rng.choice(close) if follows else next(iter(left))))
        yield ring


def _take(left: dict[str, None], passage_id: str) -> str:
    del left[passage_id]
    return passage_id


def _task(task_id: str, ring: Sequence[Draft], neighbours: int) -> dict[str, Any]:
    questions = [
        {**asdict(pair), "context": _context(position, len(ring), neighbours)}
        for position, draft in enumerate(ring)
        for pair in draft.pairs
    ]
    return {"id": task_id, "passages": [asdict(draft.passage) for draft in ring], "questions": questions}


def _context(position: int, size: int, neighbours: int) -> list[int]:
    """The position, and then its neighbours in the ring, alternately after and before it."""
    steps = [sign * distance for distance in range(1, size) for sign in (1, -1)]
    around = dict.fromkeys([position, *((position + step) % size for step in steps)])
    return list(around)[: 1 + neighbours]


def report(drafts: Sequence[Draft], task_count: int, seconds: float) -> dict[str, Any]:
    """How many passages, candidates, kept pairs and tasks there are, and what was rejected, by reason."""
    rejected = Counter(item.reason for draft in drafts for item in draft.rejected)
    return {
        "passages": len(drafts),
        "passages_with_questions": sum(bool(draft.pairs) for draft in drafts),
        "candidates": sum(draft.candidates for draft in drafts),
        "kept": sum(len(draft.pairs) for draft in drafts),
        "rejected": dict(rejected.most_common()),
        "tasks": task_count,
        "seconds": round(seconds, 1),
    }
