"""The engine in this process, without a server: so many questions always in its batch, each under its own update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from regrad.bank.reader import BankReader
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Finished
from regrad.meta_init import MetaInit
from regrad.methods.regrad import BoundMetaInit
from regrad.models.loading import load_language_model


class InProcess:
    """Atoms are fetched from the bank's memory tier and added up; what is left out is the search and the calls."""

    def __init__(self, folder: Path) -> None:
        meta_init = MetaInit.load(f"{folder}/meta-init")
        self._lm = load_language_model(meta_init.model, "cpu")
        self._bound = BoundMetaInit(self._lm, meta_init)
        self._reader = BankReader(f"{folder}/bank", meta_init.fingerprint)
        self._reader.fetch(self._reader.passage_ids())

    def run(self, questions: Sequence[str], found: Sequence[Sequence[str]], users: int, seconds: float) -> list[str]:
        """The answers that were done in so many seconds, in the order in which they began."""
        engine, answers = Engine(self._lm, users), dict[int, str]()
        begun, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            while begun - len(answers) < users:
                self._begin(engine, answers, begun, questions[begun % len(questions)], found[begun % len(questions)])
                begun += 1
            engine.step()
        return [answers[number] for number in sorted(answers)]

    def _begin(
        self, engine: Engine, answers: dict[int, str], number: int, question: str, passage_ids: Sequence[str]
    ) -> None:
        update = self._bound.update(self._reader.sum(passage_ids), 1.0)

        def hear(heard: str | Finished | Exception) -> None:
            if isinstance(heard, Exception):
                raise heard
            if isinstance(heard, Finished):
                answers[number] = heard.text

        engine.submit(DecodingRequest(self._lm.config.prompts.prompt(question), (update,)), hear)
