"""The stages of `regrad try`: model, passages, index, bank, server."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_jobs import build_bank, index_corpus
from ray_jobs.cluster import cluster
from regrad.cli.options import printable, wait_until_stopped
from regrad.cli.serve import check_address, served
from regrad.cli.trial.asking import ask_all, show_answers
from regrad.cli.trial.config import MODEL, TryConfig
from regrad.data.corpora import read_passages
from regrad.data.corpus_maker import PASSAGES, CorpusMaker, read_rejected
from regrad.data.documents import directory_of, name_in
from regrad.data.passages import encode_passages
from regrad.data.questions import Question
from regrad.data.sources import find_source
from regrad.meta_init import MetaInit
from regrad.models.fast_tokenizer import load_fast_tokenizer
from regrad.models.known import get_model
from regrad.storage import Storage
from regrad.text import listed

Say = Callable[[str], None]
_SHOWN = 5


@dataclass(frozen=True)
class Wanted:
    """What to do once the server is up: ask one question, all of a file, or (neither) stay and open the page."""

    question: str | None = None
    questions: Sequence[Question] = ()
    k: int = 1
    browser: bool = False


def run_trial(folder: str, config: TryConfig, wanted: Wanted, say: Say) -> None:
    """Prepare, serve, and stay until Ctrl-C; with questions, ask them instead and end."""
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
            if wanted.question is not None:
                show_answers(url, wanted.question, wanted.k)
            if wanted.questions:
                ask_all(url, wanted.questions, wanted.k, config.output)
            if wanted.question is not None or wanted.questions:
                return
            if wanted.browser:
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
