"""What the report measures in one process: latencies, batches, that weights stay as they are, and bytes of an atom."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import fmean

import torch

from regrad.data.corpora import read_passages
from regrad.data.passages import Passage
from regrad.evaluation import measuring
from regrad.evaluation.storing import bytes_by_codec, bytes_in_bank
from regrad.lab.files import CORPUS, people_questions
from regrad.lab.report.config import LabReportConfig
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.methods.base import Evidence, MethodSettings, PlainQuestion
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.methods.regrad import ReGradConfig, ReGradOnlineConfig
from regrad.methods.tta import TtaConfig
from regrad.models.loading import load_language_model
from regrad.storage import Storage

MEASURED = "measured.json"
_K, _ROWS, _NEW_TOKENS, _TIMED_TOKENS = 3, 16, 12, 8
_KNOWN = 100


def measure(config: LabReportConfig) -> str:
    """Write `measured.json`; returns one line. The bank's atoms are in memory when they are timed."""
    torch.set_num_threads(1)
    out, seed = config.output, config.seeds[0]
    start, bank = f"{out}/starts/regrad-{seed}", f"{out}/banks/regrad-{seed}"
    lm = load_language_model(MetaInit.load(start).model, "cpu")
    corpus = list(read_passages(f"{out}/lab/{CORPUS}"))
    cached = ReGradConfig(name="regrad", meta_init=start, bank=bank)
    methods: dict[str, MethodSettings] = {
        "direct": PromptOnlyConfig(name="direct"),
        "rag": PromptOnlyConfig(name="rag"),
        "regrad": cached,
        "regrad+icl": ReGradConfig(name="regrad+icl", meta_init=start, bank=bank),
        "regrad-online": ReGradOnlineConfig(name="regrad-online", meta_init=start),
        "tta": TtaConfig(name="tta"),
    }
    asked, known = _asked(corpus, max(config.timed, config.batched)), people_questions(World().memorised, _KNOWN)
    measuring.unchanged(lm, cached, asked, [], _NEW_TOKENS)  # fetches every atom once
    found = {
        "latency": measuring.latencies(lm, methods, asked[: config.timed], _TIMED_TOKENS),
        "batching": asdict(measuring.batching(lm, cached, asked[: config.batched], _ROWS, _NEW_TOKENS)),
        "unchanged": measuring.unchanged(lm, cached, asked, [item.question for item in known], _NEW_TOKENS),
        "bytes": {
            "text": fmean(len(passage.text.encode()) for passage in corpus),
            **{f"gradient, {name}": size for name, size in bytes_by_codec(lm.subspace).items()},
            "PRAG's adapter, float32": bytes_in_bank(f"{out}/banks/prag"),
        },
    }
    Storage(out).write(MEASURED, (json.dumps(found, indent=1) + "\n").encode())
    return f"{config.timed} questions timed, {config.batched} in batches; at {out}/{MEASURED}"


def _asked(corpus: list[Passage], count: int) -> list[Evidence]:
    """Questions about held-out people, each with its person's passage and the next ones of the corpus."""
    place = {passage.id: number for number, passage in enumerate(corpus)}
    questions = people_questions(World().held_out, count)
    return [
        Evidence(
            PlainQuestion(item.question),
            tuple(corpus[(place[item.passage_id] + i) % len(corpus)] for i in range(_K)),
        )
        for item in questions
    ]
