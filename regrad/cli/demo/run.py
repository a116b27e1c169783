"""The demo's stages, one after the other, each timed; the report is written from what was measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray import serve

from ray_jobs import build_bank, index_corpus, meta_train
from ray_jobs.cluster import cluster, joined
from regrad.bank.format import Manifest
from regrad.cli.demo.plan import DemoConfig, Plan, make_plan
from regrad.cli.demo.questions import (
    RANDOM,
    VARIANTS,
    Row,
    Variant,
    ask_all,
    read_questions,
    show_examples,
    show_table,
    verdict,
)
from regrad.cli.options import wait_until_stopped
from regrad.client import AnswerClient
from regrad.lab.files import LabQuestion, write_lab
from regrad.meta_init import random_meta_init
from regrad.models.loading import load_language_model
from regrad.storage import Storage
from serve_app.local import check_port, deploy, serving

_RAW = "raw"


class Demo:
    """One run: its plan, its clock, and what it has measured."""

    def __init__(self, config: DemoConfig, say: Callable[[str], None]) -> None:
        self.config, self.say = config, say
        self.plan: Plan = make_plan(config)
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
        """Lab files, MetaInit, index, bank; and the raw rival's MetaInit and bank. Returns the bank's manifest."""
        plan = self.plan
        with self.stage("lab", "writing the lab world: documents and questions about people the base has never seen"):
            write_lab(plan.lab)
        with self.stage("meta_train", "meta-training with Ray Train and DeepSpeed"):
            self.say(meta_train.run(plan.train))
        with self.stage("index", "indexing with Lucene"):
            self.say(index_corpus.run(plan.index))
        with self.stage("build", "filling the Gradient Bank with Ray Data"):
            manifest = build_bank.build(plan.build).manifest
            self.say(build_bank.describe(manifest, plan.build.bank.uri))
        with self.stage("raw_build", "the rival: a bank of raw gradients, at an untrained start"):
            lm = load_language_model(plan.train.model, "cpu")
            random_meta_init(lm, self.config.raw_step_size).save(plan.raw_build.meta_init)
            self.say(build_bank.run(plan.raw_build))
        return manifest

    def ask(self, url: str, questions: Sequence[LabQuestion]) -> tuple[list[Row], bool]:
        """Every variant through HTTP, and whether the base weights are the same before and after."""
        client, rows = AnswerClient(url), []
        before = _weights_digest()
        for variant in (*VARIANTS, RANDOM):
            rows.append(ask_all(client, variant, questions, self.config.concurrency))
            self.say(f"{variant.label}: exact match {rows[-1].exact_match:.3f}")
        return rows, _weights_digest() == before

    def ask_raw(self, url: str, questions: Sequence[LabQuestion]) -> Row:
        """The best of several step sizes for raw gradients, k=3, from a second application beside the first."""
        deploy(self.plan.raw_serve, _RAW, f"/{_RAW}")
        client, rows = AnswerClient(f"{url}/{_RAW}"), []
        for gamma in self.config.raw_gammas:
            label = f"raw gradients, k=3, step size {gamma * self.config.raw_step_size:g}"
            variant = Variant(_RAW, label, {"method": "regrad", "k": 3, "gamma": gamma})
            rows.append(ask_all(client, variant, questions, self.config.concurrency))
            self.say(f"{label}: exact match {rows[-1].exact_match:.3f}")
        serve.delete(_RAW)
        return max(rows, key=lambda row: row.exact_match)

    def write_report(self, rows: Sequence[Row], manifest: Manifest, weights_unchanged: bool) -> dict[str, Any]:
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
    if not joined():
        check_port(config.http)
    with cluster():
        manifest = demo.prepare()
        questions = read_questions(demo.plan.questions)
        serving_since = time.monotonic()
        say("== starting Ray Serve: gateway, retriever, bank loader, generator")
        with serving(demo.plan.serve, config.http, shared=joined()) as url:
            demo.seconds["serve_ready"] = round(time.monotonic() - serving_since, 1)
            with demo.stage("ask", f"asking {len(questions)} questions in every way, at {url}"):
                rows, unchanged = demo.ask(url, questions)
            with demo.stage("raw", "asking the rival"):
                rows.append(demo.ask_raw(url, questions))
            report = demo.write_report(rows, manifest, unchanged)
            _show(demo, rows, questions, report)
            _wait(keep, url, questions, say, config)
    say(f"report at {demo.plan.report}: {report['seconds']['total']:.0f} s in all")
    return report


def _show(demo: Demo, rows: Sequence[Row], questions: Sequence[LabQuestion], report: dict[str, Any]) -> None:
    show_table(rows)
    show_examples(rows, questions)
    for sentence in verdict(report["em"], report["weights_unchanged"]):
        demo.say(sentence)


def _wait(
    keep: bool, url: str, questions: Sequence[LabQuestion], say: Callable[[str], None], config: DemoConfig
) -> None:
    plan = make_plan(config).serve
    ask = f'regrad ask "{questions[0].question}" --url {url}'
    if not keep:
        again = f"regrad serve --set meta_init={plan.meta_init} --set bank={plan.bank} --set index={plan.index}"
        say(f"To go on: {again}\n          {ask}")
        return
    say(f"serving at {url} (docs at {url}/docs); Ctrl-C stops\nTo go on, in another terminal: {ask}")
    wait_until_stopped()
    say("stopping")


def _weights_digest() -> str:
    return str(serve.get_deployment_handle("generator", "regrad").weights_digest.remote().result())
