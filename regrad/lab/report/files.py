"""Files that only the report needs: people whom the base has memorised, and the first documents of the corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from regrad.config import LabReportConfig
from regrad.corpus import encode_passages, read_records
from regrad.lab.files import CORPUS, QUESTIONS, TASKS, documents, held_out_corpus, jsonl, people_questions
from regrad.lab.world import World
from regrad.storage import Storage

SAMPLED = {"people": "lab", "firms": "sets/firms", "many": "sets/many"}
"""The task files that a rival is fine-tuned on a part of, and where they are."""
_SAMPLE = 150


def write_memorised(config: LabReportConfig) -> str:
    """Documents of the memorised people, and as many questions about them as about the others."""
    storage, people = Storage(f"{config.output}/memorised"), World().memorised
    storage.write(CORPUS, encode_passages(documents(people)))
    storage.write(QUESTIONS, jsonl(asdict(item) for item in people_questions(people, config.questions)))
    return f"questions about {len(people)} memorised people at {storage.uri}"


def write_documents(config: LabReportConfig) -> str:
    """The first so many documents of the corpus, a file for each number of the drift study."""
    storage, corpus = Storage(f"{config.output}/documents"), held_out_corpus(World())
    for count in config.documents:
        storage.write(f"{count}.jsonl", encode_passages(corpus[:count]))
    return f"the first {', '.join(map(str, config.documents))} documents at {storage.uri}"


def write_samples(config: LabReportConfig) -> str:
    """The first tasks of each of `SAMPLED`: of more of them a rival would read only some."""
    storage = Storage(f"{config.output}/fine-tuning")
    for name, place in SAMPLED.items():
        storage.write(f"{name}.jsonl", jsonl(_first_tasks(f"{config.output}/{place}/{TASKS}")))
    return f"the first {_SAMPLE} tasks of {', '.join(SAMPLED)} at {storage.uri}"


def _first_tasks(uri: str) -> Iterator[dict[str, Any]]:
    return (record for _, record in islice(read_records(uri), _SAMPLE))
