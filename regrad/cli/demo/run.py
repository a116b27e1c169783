"""The demo's stages, one after the other, each timed; its questions, tables and report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray import serve
from rich.console import Console
from rich.table import Table

from ray_jobs import build_bank, index_corpus, meta_train
from ray_jobs.cluster import cluster
from regrad.bank.format import Manifest
from regrad.cli.demo.config import DemoConfig, DemoPlan, make_demo_plan
from regrad.cli.options import wait_until_stopped
from regrad.cli.serve import check_address, served
from regrad.client import AnswerClient
from regrad.data.jsonl import read_jsonl
from regrad.evaluation.metrics import exact_match
from regrad.lab.files import write_lab
from regrad.lab.sets import LabQuestion
from regrad.meta_init import random_meta_init
from regrad.models.loading import load_language_model
from regrad.storage import Storage
from serve_app.app import deploy

_RAW = "raw"


class Demo:
    """One run: its plan, its clock, and what it has measured."""

    def __init__(self, config: DemoConfig, say: Callable[[str], None]) -> None:
        self.config, self.say = config, say
        self.plan: DemoPlan = make_demo_plan(config)
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    @contextmanager
    def stage(self, key: str, title: str) -> Iterator[None]:
        """Say what begins, and keep how long it took."""
        self.say(f"== {title}")
        started = time.monotonic()
        yield
        self.seconds[key] = round(time.monotonic() - started, 1)

    def prepare(self) -> Manifest:
        """Lab files, MetaInit, index, bank; and the baseline's MetaInit and bank. Returns the bank's manifest."""
        plan = self.plan
        with self.stage("lab", "writing the lab world: documents and questions about people the base has never seen"):
            write_lab(plan.lab)
        with self.stage("meta_train", "meta-training with Ray Train and DeepSpeed"):
            self.say(meta_train.run(plan.train, replaces=True))  # the folder is the demo's own
        with self.stage("index", "indexing with Lucene"):
            self.say(index_corpus.run(plan.index))
        with self.stage("build", "filling the Gradient Bank with Ray Data"):
            manifest = build_bank.build(plan.build).manifest
            self.say(build_bank.describe(manifest, plan.build.bank.uri))
        with self.stage("raw_build", "the baseline: a bank of raw gradients, at an untrained MetaInit"):
            lm = load_language_model(plan.train.model, "cpu")
            random_meta_init(lm, self.config.raw_step_size).save(plan.raw_build.meta_init)
            self.say(build_bank.run(plan.raw_build))
        return manifest

    def ask(self, url: str, questions: Sequence[LabQuestion]) -> tuple[list[VariantRow], bool]:
        """Every variant through HTTP, and whether the base weights are the same before and after."""
        client = AnswerClient(url)
        rows = []
        before = _weights_digest()
        for variant in (*VARIANTS, RANDOM):
            rows.append(ask_all(client, variant, questions, self.config.concurrency))
            self.say(f"{variant.label}: exact match {rows[-1].exact_match:.3f}")
        return rows, _weights_digest() == before

    def ask_raw(self, url: str, questions: Sequence[LabQuestion]) -> VariantRow:
        """The best of several step sizes for raw gradients, k=3, from a second application beside the first."""
        deploy(self.plan.raw_serve, _RAW, f"/{_RAW}")
        client = AnswerClient(f"{url}/{_RAW}")
        rows = []
        for gamma in self.config.raw_gammas:
            label = f"raw gradients, k=3, step size {gamma * self.config.raw_step_size:g}"
            variant = Variant(_RAW, label, {"method": "regrad", "k": 3, "gamma": gamma})
            rows.append(ask_all(client, variant, questions, self.config.concurrency))
            self.say(f"{label}: exact match {rows[-1].exact_match:.3f}")
        serve.delete(_RAW)
        return max(rows, key=lambda row: row.exact_match)

    def write_report(self, rows: Sequence[VariantRow], manifest: Manifest, weights_unchanged: bool) -> dict[str, Any]:
        """`report.json`, from measurements only."""
        self.seconds["total"] = round(time.monotonic() - self._started, 1)
        report = {
            "em": {row.variant.key: round(row.exact_match, 4) for row in rows},
            "prompt_tokens": {row.variant.key: round(row.prompt_tokens, 1) for row in rows},
            "questions": len(rows[0].answers),
            "raw_variant": next(row.variant.label for row in rows if row.variant.key == _RAW),
            "seconds": self.seconds,
            "bank": {
                "passages": manifest.passages,
                "bytes_per_atom": manifest.record_bytes,
                "codec": manifest.codec,
                "version": manifest.label,
            },
            "weights_unchanged": weights_unchanged,
        }
        storage = Storage(self.config.output)
        storage.write("report.json", (json.dumps(report, indent=1) + "\n").encode())
        return report


def run_demo(config: DemoConfig, keep: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Run everything; returns the report. With `keep`, the server stays until Ctrl-C."""
    demo = Demo(config, say)
    check_address(config.http)
    with cluster():
        manifest = demo.prepare()
        questions = read_lab_questions(demo.plan.questions)
        serving_since = time.monotonic()
        say("== starting Ray Serve: gateway, retriever, bank loader, generator")
        with served(demo.plan.serve, config.http) as url:
            demo.seconds["serve_ready"] = round(time.monotonic() - serving_since, 1)
            with demo.stage("ask", f"asking {len(questions)} questions in every way, at {url}"):
                rows, unchanged = demo.ask(url, questions)
            with demo.stage("raw", "asking the baseline"):
                rows.append(demo.ask_raw(url, questions))
            report = demo.write_report(rows, manifest, unchanged)
            show_table(rows)
            show_examples(rows, questions)
            for sentence in verdict(report["em"], report["weights_unchanged"]):
                say(sentence)
            ask = f'regrad ask "{questions[0].question}" --url {url}'
            if keep:
                say(f"serving at {url} (docs at {url}/docs); Ctrl-C stops\nTo ask it in another terminal: {ask}")
                wait_until_stopped()
                say("stopping")
            else:
                plan = demo.plan.serve
                settings = f"--set meta_init={plan.meta_init} --set bank={plan.bank} --set index={plan.index}"
                say(f"To serve it again: regrad serve {settings}\n                    {ask}")
    say(f"report at {demo.plan.report}: {report['seconds']['total']:.0f} s in all")
    return report


def _weights_digest() -> str:
    return str(serve.get_deployment_handle("generator", "regrad").weights_digest.remote().result())


@dataclass(frozen=True)
class Variant:
    """One row of the table: a key of the report and the options of its requests."""

    key: str
    label: str
    options: dict[str, Any]


VARIANTS = (
    Variant("direct", "direct", {"method": "direct"}),
    Variant("rag_k1", "rag, k=1", {"method": "rag", "k": 1}),
    Variant("rag_k3", "rag, k=3", {"method": "rag", "k": 3}),
    Variant("regrad_k1", "regrad, k=1", {"method": "regrad", "k": 1}),
    Variant("regrad_k3", "regrad, k=3", {"method": "regrad", "k": 3}),
    Variant("regrad_icl", "regrad+icl, k=3", {"method": "regrad+icl", "k": 3}),
)
RANDOM = Variant("random", "regrad, another person's gradient", {"method": "regrad"})


@dataclass(frozen=True)
class VariantRow:
    """What was measured for one variant over all questions."""

    variant: Variant
    exact_match: float
    prompt_tokens: float
    questions_per_second: float
    answers: tuple[dict[str, Any], ...]


def read_lab_questions(path: str) -> list[LabQuestion]:
    """The lab's question file."""
    return [LabQuestion.from_record(record) for _, record in read_jsonl(path)]


def ask_all(client: AnswerClient, variant: Variant, questions: Sequence[LabQuestion], concurrency: int) -> VariantRow:
    """Ask every question in one way. For the control, the passage is another person's, named by its id."""
    requests = [
        {
            "question": q.question,
            **variant.options,
            **({"passage_ids": [q.other_passage_id]} if variant is RANDOM else {}),
        }
        for q in questions
    ]
    started = time.monotonic()
    answers = client.answer_many(requests, concurrency)
    seconds = time.monotonic() - started
    hits = sum(exact_match(a["answer"], q.answers) for a, q in zip(answers, questions, strict=True))
    tokens = sum(a["usage"]["prompt_tokens"] for a in answers)
    n = len(questions)
    return VariantRow(variant, hits / n, tokens / n, n / seconds, tuple(answers))


_EXAMPLES = 3
_EXAMPLE_KEYS = ("direct", "rag_k3", "regrad_k1", "regrad_k3", "regrad_icl")


def show_table(rows: Sequence[VariantRow]) -> None:
    """Exact match and prompt length of every variant."""
    table = Table(title=f"{len(rows[0].answers)} questions about held-out people")
    table.add_column("method")
    for heading in ("exact match", "prompt tokens", "questions/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        speed = f"{row.questions_per_second:.0f}"
        table.add_row(row.variant.label, f"{row.exact_match:.3f}", f"{row.prompt_tokens:.0f}", speed)
    Console().print(table)


def show_examples(rows: Sequence[VariantRow], questions: Sequence[LabQuestion]) -> None:
    """The first questions, one a column, with every method's answer below."""
    by_key = {row.variant.key: row for row in rows}
    shown = questions[:_EXAMPLES]
    table = Table(title="Side by side")
    table.add_column("", no_wrap=True)
    for question in shown:
        table.add_column(question.question)
    table.add_row("truth", *(question.answers[0] for question in shown), end_section=True)
    for key in _EXAMPLE_KEYS:
        row = by_key[key]
        table.add_row(row.variant.label, *(str(answer["answer"]) for answer in row.answers[: len(shown)]))
    Console().print(table)


def verdict(em: dict[str, float], weights_unchanged: bool) -> list[str]:
    """What was measured, in words; each sentence depends on the numbers."""
    better = "RAG wins" if em["rag_k3"] > em["regrad_k3"] else "ReGrad is not behind RAG"
    weights = "are bit-identical to those before" if weights_unchanged else "HAVE CHANGED: this is a bug"
    return [
        f"{better} here at k=3 ({em['rag_k3']:.3f} against {em['regrad_k3']:.3f}): reading is easy in this world.",
        "What ReGrad offers beside it: nothing in the prompt. The facts came in as gradients, for one question each,",
        f"and the base weights after all questions {weights}.",
        f"Controls: without anything {em['direct']:.3f}; with another person's gradient {em['random']:.3f}; "
        f"with gradients of an untrained start, best of several step sizes, k=3, {em['raw']:.3f}.",
    ]
