"""Digests: what they are of, and that those which are on disk somewhere are what they were."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from ray_jobs.submission import Submission
from regrad.bank.builder import receipt_name
from regrad.bank.io.prag import Frame, adapter_fingerprint
from regrad.data.passages import Passage, encode_passages
from regrad.data.questions import Question
from regrad.digests import file_digest, json_digest, pieces_digest, records_digest
from regrad.evaluation.demonstrations import demonstrations_digest, nearest_digest
from regrad.evaluation.plan import corpus_digest, questions_digest, short_hash
from regrad.models.config import ModelConfig
from regrad.models.subspace import Subspace
from regrad.rebuild.flow import Rebuild
from regrad.rebuild.inputs import content_digest
from regrad.retrieval.bm25 import Shard, build_sharded_index
from regrad.retrieval.config import EncoderConfig
from regrad.retrieval.embedding import EncoderIdentity, part_name
from regrad.storage import content_of
from regrad.training.cards import digest_of
from regrad.training.lora.examples import data_digest
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.meta.task_plan import check_dev_tasks, scan
from regrad.training.predictor.contexts import tasks_digest

VALUE = {"b": ["é\u2028", 1.5, None], "a": {"z": True, "y": "text"}}
PASSAGES = [Passage("p", "title", "a text"), Passage("é", "", "日本語")]
SUBSPACE = Subspace((("layers.0.mlp.down_proj", 2, 3),), 1, 2.0)
TASK = {
    "id": "t",
    "passages": [{"id": "p", "title": "", "text": "naïve"}],
    "questions": [{"question": "Who?", "answer": "é", "context": [0]}],
}


def shard_name(folder: Path) -> str:
    """The name under which a job keeps the words of these passages."""
    seen: list[str] = []

    def build(shards: Sequence[Shard]) -> Sequence[str]:
        seen.extend(shard.name for shard in shards)
        raise InterruptedError

    with suppress(InterruptedError):
        build_sharded_index(PASSAGES, f"{folder}/index", 1, build)
    return seen[0]


def stored(folder: Path) -> dict[str, str]:
    """Every digest that is in the name or the content of a file, of fixed content."""
    tasks, corpus = str(folder / "tasks.jsonl"), str(folder / "corpus.jsonl")
    Path(tasks).write_text(json.dumps(TASK) + "\n")
    Path(corpus).write_bytes(encode_passages(PASSAGES))
    lengths: Any = SimpleNamespace(check=lambda *_: None, check_dev=lambda *_: None)
    shape: Any = SimpleNamespace(bad_tasks="fail")
    question = Question("q", "Où?", ("là",), passages=tuple(PASSAGES))
    identity = EncoderIdentity(EncoderConfig(path="encoder"), "ab" * 32, 8)
    [[head, _]] = scan(0, tasks, lengths, shape)
    lora = StaticLora(ModelConfig(path="base"), "base", SUBSPACE, torch.arange(5.0))
    fine: Any = SimpleNamespace(objective="passages", corpus=corpus, tasks=None)
    return {
        "cell": short_hash(VALUE),
        "questions": questions_digest([question]),
        "demonstrations": demonstrations_digest([question], passages=True),
        "nearest demonstrations": nearest_digest({"q": [question], "é": []}),
        "corpus of a set": corpus_digest(corpus),
        "input of a rebuild": content_digest(corpus),
        "version of a rebuild": cast("Any", Rebuild.digest).fget(SimpleNamespace(keys={"tasks": "1", "meta": "2"})),
        "block of a bank": receipt_name(VALUE, PASSAGES),
        "block of vectors": part_name(PASSAGES, identity),
        "shard of words": shard_name(folder),
        "adapters": adapter_fingerprint(Frame("base", SUBSPACE)),
        "static LoRA": lora.digest,
        "predictor": digest_of(VALUE, {"w": torch.arange(3.0), "a": torch.ones(2, 2)}),
        "task": head.content,
        "dev set": check_dev_tasks(tasks, lengths, shape, 4).digest,
        "texts of a LoRA": data_digest(fine),
        "tasks of a predictor": tasks_digest([tasks]),
        "submission": Submission("eval", "ray_jobs.evaluate", [], [], VALUE, folder).name,
    }


FROZEN = {
    "cell": "3695dce35f2340c8",
    "questions": "3fbc16e7ccfea81b",
    "demonstrations": "b7208cd6888b76f0",
    "nearest demonstrations": "95332f050ab71fd3",
    "corpus of a set": "d67c8ee011d50cf4",
    "input of a rebuild": "d67c8ee011d50cf4",
    "version of a rebuild": "e67d493fb887",
    "block of a bank": "builds/47eaa040f8a7c29af7927f97a792464f.parquet",
    "block of vectors": "f28685fb1b85b3bcac67d0d158059fadc46d799c3e602bb0dd039f7059df20aa.safetensors",
    "shard of words": "1c97b27cce948a3d476064fec8057b1a",
    "adapters": "6f765ad437b7c4f6",
    "static LoRA": "8c65b1b189257cfe",
    "predictor": "cfe9e0d747da37b5",
    "task": "fff1fecf5a90340c",
    "dev set": "fff1fecf5a90340c",
    "texts of a LoRA": "eebe32a18b38b966",
    "tasks of a predictor": "74d380339d8658ed",
    "submission": "regrad-eval-4c10594133e9",
}
"""As they were when each was computed where it is used: a change means that what lies on disk is not found again."""


def test_what_lies_on_disk_is_found_again(tmp_path: Path) -> None:
    assert stored(tmp_path) == FROZEN


def test_a_json_value_has_one_digest_in_any_order_of_its_keys() -> None:
    ordered = {"a": {"y": "text", "z": True}, "b": ["é\u2028", 1.5, None]}
    assert json_digest(VALUE) == json_digest(ordered) == "8294cc7ee8e9d62b"
    assert json_digest(VALUE, 64) == "8294cc7ee8e9d62bfcdb776db30abf27e3d4648bd7cdff41dbeb543c4fb7f018"
    assert json_digest(VALUE, sort_keys=False) == "c1189ec1734cd882" != json_digest(ordered, sort_keys=False)
    assert json_digest(VALUE, ensure_ascii=False) == "3695dce35f2340c8"
    assert json_digest({"a": 1}) == json_digest({"a": 1}, ensure_ascii=False) != json_digest({"a": "1"})


def test_a_file_and_its_pieces_have_one_digest(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert file_digest(tmp_path / "file") == file_digest(f"{tmp_path}/file") == expected
    assert pieces_digest([content[:1000], memoryview(content)[1000:]]) == pieces_digest([content]) == expected
    assert pieces_digest(content_of(f"{tmp_path}/file")) == expected


def test_records_have_another_digest_in_another_order_or_after_another_head() -> None:
    found = records_digest(PASSAGES)
    assert found == records_digest(iter(PASSAGES))
    assert len({found, records_digest(reversed(PASSAGES)), records_digest(PASSAGES, b"card"), records_digest([])}) == 4
