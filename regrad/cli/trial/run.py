"""The stages of `regrad try`: model, passages, index, bank, server."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ray_jobs import build_bank, index_corpus
from ray_jobs.cluster import cluster
from regrad.cli.options import printable, wait_until_stopped
from regrad.cli.serve import check_address, served
from regrad.cli.trial.config import MODEL, TryConfig
from regrad.client import AnswerClient
from regrad.data.corpora import read_passages
from regrad.data.corpus_maker import PASSAGES, CorpusMaker, read_rejected
from regrad.data.documents import directory_of, name_in
from regrad.data.passages import encode_passages
from regrad.data.sources import find_source
from regrad.meta_init import MetaInit
from regrad.models.fast_tokenizer import load_fast_tokenizer
from regrad.models.known import get_model
from regrad.storage import Storage
from regrad.text import listed

Say = Callable[[str], None]
_WAYS = ("direct", "rag", "regrad", "regrad+icl")
_SHOWN = 5
_ASKED_K = 1  # one passage is what a small model reads best


def run_trial(folder: str, config: TryConfig, browser: bool, question: str | None, say: Say) -> None:
    """Prepare, serve, and stay until Ctrl-C; with a question, ask it instead and end."""
    started = time.monotonic()
    find_source(folder)  # before a model is fetched for nothing
    meta_init = MetaInit.load(config.meta_init)
    check_address(config.http)
    prepare(folder, meta_init, config, say)
    with cluster():
        say(index_corpus.run(config.index))
        say("computing gradients; next time only those of new passages")
        say(build_bank.run(config.bank))
        with served(config.server, config.http) as url:
            say(f"ready after {time.monotonic() - started:.0f} s: {url} (Ctrl-C stops)")
            if question is not None:
                show_answers(url, question)
                return
            if browser:
                webbrowser.open(url)
            wait_until_stopped()
            say("stopping")


def prepare(folder: str, meta_init: MetaInit, config: TryConfig, say: Say) -> None:
    """Fetch the model if it is not there, and write the folder's passages below `config.output`.

    Raises `CorpusError` for a folder without text, `ModelError` for a model that cannot be fetched.
    """
    if config.model is not None and not Path(config.model).exists():
        say(f"fetching {MODEL} (98 MB, once)")
        get_model(MODEL, config.model)
    tokenizer = load_fast_tokenizer(meta_init.model_at(config.model).path)
    corpus = config.corpus(folder)
    say(printable(CorpusMaker(corpus, tokenizer, say).run()))
    (source,) = corpus.sources
    left_out = [
        f"{name_in(directory_of(source, one.where), one.where)} ({one.reason})" for one in read_rejected(corpus.output)
    ]
    if left_out:
        say(printable(f"left out: {listed(left_out, _SHOWN)}"))
    passages = list(read_passages(f"{corpus.output}/{PASSAGES}"))
    Storage(config.output).write("banked.jsonl", encode_passages(passages[: config.most_banked]))
    if len(passages) > config.most_banked:
        say(
            f"gradients of the first {config.most_banked:,} are computed now, the others when a question needs them; "
            f"`--set most_banked={len(passages)}` computes all"
        )


def show_answers(url: str, question: str) -> None:
    """One question in every way, with the passages that each saw."""
    client = AnswerClient(url)
    table = Table(title=printable(question), title_justify="left")
    for heading in ("way", "answer", "from", "prompt", "ms"):
        table.add_column(heading, justify="right" if heading in ("prompt", "ms") else "left", overflow="fold")
    for way in _WAYS:
        answer = client.answer(question, method=way, k=_ASKED_K)
        found = "\n".join(printable(passage["id"]) for passage in answer["passages"])
        tokens, milliseconds = answer["usage"]["prompt_tokens"], answer["milliseconds"]["total"]
        table.add_row(way, printable(answer["answer"].strip()), found, str(tokens), f"{milliseconds:.0f}")
    Console().print(table)
