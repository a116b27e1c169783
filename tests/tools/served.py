"""A small server for tests, and what it must answer. Run as a script it serves FOLDER at PORT until its input ends.

It stands behind HAProxy, as the servers of `regrad serve` do. A line of its input is the name of another application,
which is then served beside it, below /NAME, as FOLDER/NAME.json says, or, if there is no such file, no longer; of an
empty one nothing is changed. It answers each with a line, ANSWER and as JSON how many replicas run of each deployment.

The model is the random one of the tests, so answers are no sense, but they hang on every number of the update. What
each question must give is computed by transformers' `generate` and the MetaInit, without engine, server or Ray.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from regrad.bank.codecs import codec_for
from regrad.bank.format import Layout, Manifest
from regrad.bank.writer import BankWriter
from regrad.data.passages import Passage
from regrad.inference.decoding import GenerationRequest, generate
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.lab.files import held_out_corpus, held_out_questions
from regrad.lab.wording import LAB_PROMPTS
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.methods.registry import METHODS as TABLE
from regrad.models.config import ModelConfig, SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.retrieval.base import open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.settings import parse_settings
from serve_app.config import HttpConfig, ServeConfig
from tests.tools.nodes import started
from tests.tools.patience import patient

PASSAGES, QUESTIONS, TOKENS = 40, 48, 10
METHODS = ("direct", "rag", "regrad", "regrad+icl", "regrad-online")
SCALES = {1: 1.0, 2: -1.0}
"""A version of the bank, and by what its atoms are multiplied."""
ANSWER = "answer: "
_LEAST_MARGIN = 2e-3


def layout(meta_init: MetaInit) -> Layout:
    return Layout(fingerprint=meta_init.fingerprint, codec="float32", subspace=meta_init.subspace.to_json())


def commit(uri: str, meta_init: MetaInit, passages: list[Passage], atoms: Tensor, version: int) -> Manifest:
    """Commit the next version, which is `version`."""
    writer = BankWriter(uri, layout(meta_init), shard_passages=8)
    for passage, atom in zip(passages, atoms * SCALES[version], strict=True):
        writer.add_atom(passage.id, passage.text_hash, atom)
    return writer.commit()


def prepare(folder: Path, model: Path) -> None:
    """MetaInit, corpus, atoms, index, a bank of version 1, and `expected.json`."""
    torch.set_num_threads(1)
    lm = load_language_model(
        ModelConfig(path=str(model), prompts=LAB_PROMPTS, subspace=SubspaceConfig(rank=4, alpha=8)), "cpu"
    )
    generator = torch.Generator().manual_seed(1)
    phi0 = torch.randn(lm.subspace.size, generator=generator) * 0.1
    meta_init = MetaInit(lm.config, lm.identity(), lm.subspace, phi0, torch.full((len(lm.subspace.shapes),), 2.0))
    meta_init.save(folder / "meta-init")
    world = World()
    passages = held_out_corpus(world)[:PASSAGES]
    atoms = _atoms(lm, meta_init, passages)
    save_file({"atoms": atoms}, folder / "atoms.safetensors")
    (folder / "passages.json").write_text(json.dumps([asdict(passage) for passage in passages]))
    commit(str(folder / "bank"), meta_init, passages, atoms, 1)
    build_index(passages, str(folder / "index"))
    (folder / "expected.json").write_text(json.dumps(_expected(lm, meta_init, world, passages, atoms, folder)))


def _atoms(lm: LanguageModel, meta_init: MetaInit, passages: list[Passage]) -> Tensor:
    from regrad.gradients.extractor import AtomExtractor

    return torch.stack([item.atom for item in AtomExtractor(lm, meta_init).extract(passages) if item.atom is not None])


def _expected(
    lm: LanguageModel, meta_init: MetaInit, world: World, passages: list[Passage], atoms: Tensor, folder: Path
) -> list[dict[str, Any]]:
    """Requests, the passages that they retrieve and their answer for each version of the bank.

    Left out are questions in whose answer two tokens are so near that the rounding of a batch could tip the choice.
    """
    here = {passage.id: i for i, passage in enumerate(passages)}
    questions = [q.question for q in held_out_questions(world, 2000) if q.passage_id in here][:QUESTIONS]
    retriever = open_retriever(str(folder / "index"))
    kept = []
    for number, question in enumerate(questions):
        method, k = METHODS[number % len(METHODS)], 1 + number % 3
        hits = [hit.passage for hit in retriever.search([question], k)[0]]
        total = codec_for("float32", lm.subspace).sum(
            [codec_for("float32", lm.subspace).encode(atoms[here[p.id]][None])[0] for p in hits]
        )
        answers = {}
        for version, scale in SCALES.items():
            applied = TABLE[method].applies_gradients
            scale = 1.0 if method == "regrad-online" else scale
            rounded = total if method == "regrad-online" else total.to(torch.bfloat16).float()
            update = meta_init.update(rounded * scale) if applied else None
            prompt = LAB_PROMPTS.prompt(question, hits[::-1] if TABLE[method].passages_in_prompt else [])
            updates = lm.subspace.updates(update)
            if not _is_clear(lm, DecodingRequest(prompt, updates, TOKENS)):
                break
            answers[version] = generate(lm, [GenerationRequest(prompt, updates, TOKENS)])[0].text
        else:
            body = {"question": question, "method": method, "k": k, "max_new_tokens": TOKENS}
            ids = [] if method == "direct" else [passage.id for passage in hits]
            kept.append({"body": body, "passage_ids": ids, "answers": answers})
    return kept


def _is_clear(lm: LanguageModel, request: DecodingRequest) -> bool:
    """Whether at every step the best token is well ahead of the second."""
    engine, margins = Engine(lm), list[float]()
    scores = engine._scores

    def watched(numbers: list[int], pieces: list[list[int]]) -> Tensor:
        found = scores(numbers, pieces)
        first, second = found[0].topk(2).values.tolist()
        margins.append(first - second)
        return found

    engine._scores = watched  # type: ignore[method-assign]
    engine.submit(request, lambda update: None)
    while engine.step():
        pass
    return min(margins) > _LEAST_MARGIN


def main() -> None:
    """Serve `FOLDER/serve.json` at PORT; says `serving`, and stops when the input ends."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    import ray

    from ray_jobs.cluster import prepare_serve_proxy
    from serve_app import app

    app._START_SECONDS = round(patient(app._START_SECONDS))
    prepare_serve_proxy()
    options: Any = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
    started(lambda: ray.init("local", object_store_memory=100 << 20, **options))
    with app.serving(_config(folder / "serve.json"), HttpConfig(port=port)):
        print("serving", flush=True)
        for line in sys.stdin:
            if name := line.strip():
                _beside(folder, name)
            print(f"{ANSWER}{json.dumps(_running())}", flush=True)
    ray.shutdown()


def _beside(folder: Path, name: str) -> None:
    """Serve another application, or no longer."""
    from ray import serve

    from serve_app.app import deploy

    if (path := folder / f"{name}.json").exists():
        deploy(_config(path), name, f"/{name}")
    else:
        serve.delete(name)


def _running() -> dict[str, dict[str, int]]:
    """By application and deployment."""
    from ray import serve
    from ray.serve.schema import ReplicaState

    return {
        name: {one: int(of.replica_states.get(ReplicaState.RUNNING, 0)) for one, of in application.deployments.items()}
        for name, application in serve.status().applications.items()
    }


def _config(path: Path) -> ServeConfig:
    return parse_settings(ServeConfig, json.loads(path.read_text()), path.name)


if __name__ == "__main__":
    main()
