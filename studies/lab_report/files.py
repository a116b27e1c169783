"""Files that only the report needs: memorised people, documents by number, samples, indexes, an untrained start."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from regrad.data.corpora import read_passages
from regrad.data.jsonl import encode_jsonl, read_jsonl
from regrad.data.passages import encode_passages
from regrad.lab.files import CORPUS, QUESTIONS, TASKS, documents, held_out_corpus, people_questions
from regrad.lab.world import World
from regrad.meta_init import random_meta_init
from regrad.models.loading import load_language_model
from regrad.retrieval.bm25 import build_index
from regrad.settings import builtin_config, load_settings
from regrad.storage import Storage
from regrad.training.meta.config import MetaTrainConfig
from studies.lab_report.config import LabReportConfig

HARD = ("many", "long", "conflict", "unseen", "firms")
"""The harder labs that are written beside the lab itself."""
SAMPLED = {"people": "lab", "firms": "sets/firms", "many": "sets/many"}
"""The task files that a baseline is fine-tuned on a part of, and where they are."""
UNTIL = "until-"
GROUP_OLD = "memorised"
"""The group of the drift study's questions about people whom the base has memorised."""
_SAMPLE = 150


def write_memorised(config: LabReportConfig) -> str:
    """Documents of the memorised people, and as many questions about them as about the others."""
    storage = Storage(f"{config.output}/memorised")
    people = World().memorised[: config.people]
    storage.write(CORPUS, encode_passages(documents(people)))
    storage.write(QUESTIONS, encode_jsonl(item.to_record() for item in people_questions(people, config.questions)))
    return f"questions about {len(people)} memorised people at {storage.uri}"


def write_documents(config: LabReportConfig) -> str:
    """The drift study: what each number of documents adds, what is retrieved from by then, and the questions.

    `<count>.jsonl` are the documents that came since the number before, `until-<count>.jsonl` all so far and those of
    the people whom the base has memorised, `all.jsonl` the same with the whole corpus. Half of `questions.jsonl` is
    about the documents, half about the memorised people.
    """
    storage = Storage(f"{config.output}/documents")
    world = World()
    corpus = held_out_corpus(world)[: config.people]
    memorised = world.memorised[: config.people]
    old = documents(memorised)
    for before, count in zip((0, *config.documents), config.documents, strict=False):
        storage.write(f"{count}.jsonl", encode_passages(corpus[before:count]))
        storage.write(f"{UNTIL}{count}.jsonl", encode_passages([*old, *corpus[:count]]))
    storage.write("all.jsonl", encode_passages([*old, *corpus]))
    asked = {
        "new": people_questions(world.held_out[: config.people], config.questions),
        GROUP_OLD: people_questions(memorised, config.questions),
    }
    storage.write(
        QUESTIONS, encode_jsonl(item.to_record() | {"group": group} for group in asked for item in asked[group])
    )
    return f"the first {', '.join(map(str, config.documents))} documents at {storage.uri}"


def write_samples(config: LabReportConfig) -> str:
    """The first tasks of each of `SAMPLED`: of more of them a baseline would read only some."""
    storage = Storage(f"{config.output}/fine-tuning")
    for name, place in SAMPLED.items():
        storage.write(f"{name}.jsonl", encode_jsonl(_first_tasks(f"{config.output}/{place}/{TASKS}")))
    return f"the first {_SAMPLE} tasks of {', '.join(SAMPLED)} at {storage.uri}"


def write_indexes(config: LabReportConfig) -> str:
    """All of them in one process: of a small index most of the time is the start of Java."""
    out = config.output
    corpora = {"people": f"{out}/lab/{CORPUS}", "memorised": f"{out}/memorised/{CORPUS}"}
    corpora |= {variant: f"{out}/sets/{variant}/{CORPUS}" for variant in HARD}
    corpora |= {f"documents-{count}": f"{out}/documents/{UNTIL}{count}.jsonl" for count in config.documents}
    counts = [build_index(read_passages(uri), f"{out}/index/{name}") for name, uri in corpora.items()]
    return f"{len(corpora)} BM25 indexes at {out}/index: {sum(counts)} passages"


def write_raw_start(config: LabReportConfig) -> str:
    """The start that meta-training begins with, as it is before the first step."""
    train = load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"))
    uri = f"{config.output}/starts/raw"
    random_meta_init(load_language_model(train.model, "cpu"), train.inner.initial_step_size).save(uri)
    return f"untrained MetaInit at {uri}"


def _first_tasks(uri: str) -> Iterator[dict[str, Any]]:
    return (record for _, record in islice(read_jsonl(uri), _SAMPLE))
