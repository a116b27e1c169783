"""The way of the paper's release, on the lab: one question at a time; atoms are read from files, the adapter's weights
are copied, written, generated with and put back.

Generous to it: an atom is a file of its own (the release reads one pickle of them all), the model is not moved
between devices, and nothing is logged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from ray import serve
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteriaList

from regrad.bank.reader import BankReader
from regrad.meta_init import MetaInit
from regrad.models.local_files import resolve_path
from regrad.retrieval.base import open_retriever
from serve_app.app import QUIET

MAX_NEW_TOKENS = 20
PATH = "/authors"


def write_atoms(bank: str, folder: Path) -> None:
    """Every atom of a bank as a file of tensors by their names in PEFT, as gradients come out of a backward pass."""
    folder.mkdir()
    with BankReader(bank) as reader:
        subspace = reader.manifest.parsed_subspace()
        for passage_id in reader.passage_ids():
            tensors = subspace.unflatten(reader.read([passage_id])[0])
            named = {_peft_name(name): tensor.clone() for name, tensor in tensors.items()}
            torch.save(named, folder / f"{passage_id}.pt")


def _peft_name(name: str) -> str:
    module, factor = name.rsplit(".", 1)
    return f"base_model.model.{module}.lora_{factor}.default.weight"


class Authors:
    """Answers one question at a time."""

    def __init__(self, meta_init: str, atoms: str) -> None:
        start = MetaInit.load(meta_init)
        path = resolve_path(start.model.path)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        self._model: Any = PeftModel.from_pretrained(base, meta_init).eval()
        self._prompts, self._atoms = start.model.prompts, Path(atoms)
        self._adapted = {name: value for name, value in self._model.named_parameters() if "lora_" in name}
        alphas = start.subspace.unflatten(start.subspace.per_tensor(start.step_sizes))
        self._alphas = {_peft_name(name): alpha.clone() for name, alpha in alphas.items()}

    @torch.no_grad()
    def answer(self, question: str, passage_ids: Sequence[str]) -> str:
        """The answer under the passages' gradients; the adapter is as before afterwards."""
        backup = {name: value.detach().clone() for name, value in self._adapted.items()}
        try:
            for passage_id in passage_ids:
                for name, gradient in self._read(passage_id).items():
                    self._adapted[name].sub_(self._alphas[name] * gradient)
            return self._generated(self._prompts.prompt(question))
        finally:
            for name, value in self._adapted.items():
                value.copy_(backup[name])

    def _read(self, passage_id: str) -> dict[str, Tensor]:
        atom: dict[str, Tensor] = torch.load(self._atoms / f"{passage_id}.pt", weights_only=True)
        return atom

    def _generated(self, prompt: str) -> str:
        start = [] if self._tokenizer.bos_token_id is None else [self._tokenizer.bos_token_id]
        ids = torch.tensor([start + self._tokenizer.encode(prompt, add_special_tokens=False)])
        output = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([self._at_stop(ids.shape[1])]),
            pad_token_id=self._tokenizer.pad_token_id,
        )
        text: str = self._tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        return text.split(self._prompts.stop)[0].strip()

    def _at_stop(self, start: int) -> Any:
        """At a newline; transformers' own `stop_strings` would take as long as the rest of a lab answer."""
        return lambda ids, scores, **_: torch.tensor([self._prompts.stop in self._tokenizer.decode(ids[0, start:])])


def in_process(
    authors: Authors, questions: Sequence[str], found: Sequence[Sequence[str]], seconds: float
) -> tuple[list[str], list[float], float]:
    """Answers, the seconds of each and the processor's seconds of all, one after the other for so long."""
    answers: list[str] = []
    each: list[float] = []
    started, processor = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        number, before = len(answers) % len(questions), time.perf_counter()
        answers.append(authors.answer(questions[number], found[number]))
        each.append(time.perf_counter() - before)
    return answers, each, time.process_time() - processor


class AuthorsServer:
    """The same behind HTTP: it searches, then answers. Takes and gives what the benchmark's client needs, no more."""

    def __init__(self, meta_init: str, atoms: str, index: str) -> None:
        torch.set_num_threads(1)
        self._authors = Authors(meta_init, atoms)
        self._retriever = open_retriever(index)

    async def __call__(self, request: Any) -> dict[str, Any]:
        """One answer, while everybody else waits: nothing is awaited once the body is there."""
        body = await request.json()
        hits = self._retriever.search([body["question"]], body["k"])[0]
        return {"answer": self._authors.answer(body["question"], [hit.passage.id for hit in hits]), "batch_size": 1}


def deploy_authors(meta_init: str, atoms: str, index: str) -> str:
    """Put it, as one replica, beside the application that is being served; gives its path.

    Requests may wait in the replica: with `max_ongoing_requests=1` Serve's router would now and then leave it idle.
    It reserves no CPU: the applications beside it may have reserved all there are, and one is asked at a time.
    """
    options = {"num_cpus": 0}
    deployment = serve.deployment(AuthorsServer, max_ongoing_requests=256, ray_actor_options=options)
    serve.run(deployment.bind(meta_init, atoms, index), name="authors", route_prefix=PATH, logging_config=QUIET)
    return PATH
