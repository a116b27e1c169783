"""From drafts to meta-training tasks: checks that need the whole corpus, and the rings that tasks are made of.

A task is a ring of passages, each with its questions. A question rests on its passage, alone or with its neighbours in
the ring. Every passage of a ring has its own questions, so several contexts share its gradient, and meta-training
differentiates it once. If the caller gives search results, a question has to find its own passage (a round trip, as in
Promptagator, Dai et al. 2022: a question that names its subject wrongly or not at all does not), and neighbours are
mostly passages that were found together with it.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from regrad.data.augmented import Pair
from regrad.data.questions import normalise
from regrad.training.synthesis.config import SynthesisConfig
from regrad.training.synthesis.writer import Draft, Rejected

AMBIGUOUS = "asked of several passages with different answers"
SAME_ID = "passage id occurs more than once"
NOT_FOUND = "the question does not find its passage"
SURPLUS = "more questions than are kept"

_NEAR_FRACTION = 0.7


Hits = Mapping[str, Sequence[str]]
"""For a question, the ids of the passages that a search for it finds, best first."""


def select_pairs(drafts: Sequence[Draft], config: SynthesisConfig, hits: Hits | None = None) -> list[Draft]:
    """The drafts in the same order, with the pairs to keep: found, unambiguous, and not too many of one passage."""
    # 1. A passage id that occurs again is used once.
    unique: list[Draft] = []
    seen: set[str] = set()
    for draft in drafts:
        if draft.candidates and draft.passage.id in seen:
            draft = replace(draft, pairs=(), rejected=(Rejected(SAME_ID),))
        elif draft.candidates:
            seen.add(draft.passage.id)
        unique.append(draft)
    # 2. All answers that the corpus gives to a question.
    answers: dict[str, set[str]] = defaultdict(set)
    for draft in unique:
        for pair in draft.pairs:
            answers[normalise(pair.question)].add(normalise(pair.answer))
    # 3. What is left after each check, with the reasons for the rest.
    selected: list[Draft] = []
    for draft in unique:
        draft = draft.without([pair for pair in draft.pairs if len(answers[normalise(pair.question)]) > 1], AMBIGUOUS)
        if hits is not None:
            lost = [pair for pair in draft.pairs if draft.passage.id not in hits[pair.question][: config.max_rank]]
            draft = draft.without(lost, NOT_FOUND)
        kept = _varied(draft.pairs, config.questions)
        selected.append(draft.without([pair for pair in draft.pairs if pair not in kept], SURPLUS))
    return selected


def _varied(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """The first pair of each answer, then the second of each, and so on, until there are enough."""
    turns: Counter[str] = Counter()
    ranked = []
    for position, pair in enumerate(pairs):
        ranked.append((turns[normalise(pair.answer)], position, pair))
        turns[normalise(pair.answer)] += 1
    return [pair for _, _, pair in sorted(ranked, key=lambda item: item[:2])[:count]]


def make_tasks(drafts: Sequence[Draft], config: SynthesisConfig, hits: Hits | None = None) -> Iterator[dict[str, Any]]:
    """Task records over the drafts that have pairs, each in `config.tasks_per_passage` of them."""
    by_id = {draft.passage.id: draft for draft in drafts if draft.pairs}
    near: dict[str, list[str]] = {}
    for own, draft in by_id.items():
        found = [other for pair in draft.pairs for other in (hits or {}).get(pair.question, ())]
        near[own] = [other for other in dict.fromkeys(found) if other != own]
    for turn in range(config.tasks_per_passage):
        rng = random.Random(f"{config.seed}/{turn}")
        for ring in _rings(list(by_id), config.passages_per_task, near, rng):
            neighbours = config.neighbours if rng.random() < config.neighbours_fraction else 0
            members = [by_id[passage_id] for passage_id in ring]
            questions = [
                {"question": pair.question, "answer": pair.answer, "context": _context(position, len(ring), neighbours)}
                for position, draft in enumerate(members)
                for pair in draft.pairs
            ]
            passages = [asdict(draft.passage) for draft in members]
            yield {"id": f"{ring[0]}/{turn}", "passages": passages, "questions": questions}


def _rings(ids: Sequence[str], size: int, near: Mapping[str, Sequence[str]], rng: random.Random) -> Iterator[list[str]]:
    """All ids in rings; a passage is mostly followed by one that is near it, if one of those is left."""
    left = dict.fromkeys(rng.sample(ids, len(ids)))  # a dictionary keeps the order and removes in constant time
    while left:
        ring: list[str] = []
        while left and len(ring) < size:
            close = [other for other in near.get(ring[-1], ()) if other in left] if ring else []
            follower = rng.choice(close) if close and rng.random() < _NEAR_FRACTION else next(iter(left))
            del left[follower]
            ring.append(follower)
        yield ring


def _context(position: int, size: int, neighbours: int) -> list[int]:
    """The position, and then its neighbours in the ring, alternately after and before it."""
    steps = [sign * distance for distance in range(1, size) for sign in (1, -1)]
    around = dict.fromkeys([position, *((position + step) % size for step in steps)])
    return list(around)[: 1 + neighbours]


def synthesis_report(drafts: Sequence[Draft], task_count: int, seconds: float) -> dict[str, Any]:
    """Numbers of passages, candidates, kept pairs and tasks, and of rejected pairs by reason."""
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
