"""Files that only the report needs: people whom the base has memorised, and the first documents of the corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from regrad.data.jsonl import encode_jsonl, read_jsonl
from regrad.data.passages import encode_passages
from regrad.lab.files import (
    CORPUS,
    QUESTIONS,
    TASKS,
    documents,
    held_out_corpus,
    held_out_questions,
    people_questions,
)
from regrad.lab.report.config import LabReportConfig
from regrad.lab.world import World
from regrad.storage import Storage

SAMPLED = {"people": "lab", "firms": "sets/firms", "many": "sets/many"}
"""The task files that a rival is fine-tuned on a part of, and where they are."""
UNTIL = "until-"
GROUP_OLD = "memorised"
"""The group of the drift study's questions about people whom the base has memorised."""
_SAMPLE = 150


def write_memorised(config: LabReportConfig) -> str:
    """Documents of the memorised people, and as many questions about them as about the others."""
    storage, people = Storage(f"{config.output}/memorised"), World().memorised
    storage.write(CORPUS, encode_passages(documents(people)))
    storage.write(QUESTIONS, encode_jsonl(asdict(item) for item in people_questions(people, config.questions)))
    return f"questions about {len(people)} memorised people at {storage.uri}"


def write_documents(config: LabReportConfig) -> str:
    """The drift study: what each number of documents adds, what is retrieved from by then, and the questions.

    `<count>.jsonl` are the documents that came since the number before, `until-<count>.jsonl` all so far and those of
    the people whom the base has memorised, `all.jsonl` the same with the whole corpus. Half of `questions.jsonl` is
    about the documents, half about the memorised people.
    """
    storage, world = Storage(f"{config.output}/documents"), World()
    corpus, old = held_out_corpus(world), documents(world.memorised)
    for before, count in zip((0, *config.documents), config.documents, strict=False):
        storage.write(f"{count}.jsonl", encode_passages(corpus[before:count]))
        storage.write(f"{UNTIL}{count}.jsonl", encode_passages([*old, *corpus[:count]]))
    storage.write("all.jsonl", encode_passages([*old, *corpus]))
    asked = {
        "new": held_out_questions(world, config.questions),
        GROUP_OLD: people_questions(world.memorised, config.questions),
    }
    storage.write(QUESTIONS, encode_jsonl(asdict(item) | {"group": group} for group in asked for item in asked[group]))
    return f"the first {', '.join(map(str, config.documents))} documents at {storage.uri}"


def write_samples(config: LabReportConfig) -> str:
    """The first tasks of each of `SAMPLED`: of more of them a rival would read only some."""
    storage = Storage(f"{config.output}/fine-tuning")
    for name, place in SAMPLED.items():
        storage.write(f"{name}.jsonl", encode_jsonl(_first_tasks(f"{config.output}/{place}/{TASKS}")))
    return f"the first {_SAMPLE} tasks of {', '.join(SAMPLED)} at {storage.uri}"


def _first_tasks(uri: str) -> Iterator[dict[str, Any]]:
    return (record for _, record in islice(read_jsonl(uri), _SAMPLE))
