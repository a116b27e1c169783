"""`regrad lab pretrain` from nothing: world, tokenizer, training, quality, and the model directory."""

from __future__ import annotations

import json
import logging
import random
import time

import torch

from regrad.evaluation.metrics import exact_match
from regrad.inference.decoding import GenerationRequest, generate
from regrad.lab.config import LabPretrainConfig
from regrad.lab.files import held_out_corpus, held_out_questions
from regrad.lab.pretraining.trainer import Pretrainer, Progress
from regrad.lab.tokenizer import train_tokenizer
from regrad.lab.wording import ATTRIBUTES, LAB_PROMPTS
from regrad.lab.world import Namesakes, World, question
from regrad.models.config import ModelConfig, SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.storage import check_replaceable, directory_writer

logger = logging.getLogger(__name__)

QUALITY = "quality.json"
_BATCH = 64


def pretrain(config: LabPretrainConfig) -> str:
    """Train and write `config.output` (Hugging Face format plus `quality.json`); returns the closing line."""
    check_replaceable(config.output, QUALITY)
    torch.set_num_threads(config.threads)
    world, started = World(), time.monotonic()
    tokenizer = train_tokenizer(world)
    model = Pretrainer(config, world, tokenizer).run(_log)
    seconds = time.monotonic() - started
    with directory_writer(config.output, QUALITY) as folder:
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        quality = {"seconds": round(seconds), **measure(str(folder), world)}
        (folder / QUALITY).write_text(json.dumps(quality, indent=1) + "\n")
    scores = ", ".join(f"{name} {value}" for name, value in quality.items() if name != "seconds")
    return f"base model at {config.output}: {config.steps} steps in {seconds:.0f} s; exact match {scores}"


def measure(path: str, world: World, questions: int = 400) -> dict[str, float]:
    """Exact match on held-out people with 1 and 3 passages to read and with none, and on memorised people with none.

    The passages of three share name pieces with the person asked about where that is possible.
    """
    lm = load_language_model(ModelConfig(path=path, prompts=LAB_PROMPTS, subspace=SubspaceConfig(layers=(0,))), "cpu")
    rng = random.Random(3)
    corpus = {passage.id: passage for passage in held_out_corpus(world)}
    people = {person.passage_id: person for person in world.held_out}
    asked, namesakes = held_out_questions(world, questions), Namesakes(world.held_out)
    prompts: dict[str, list[str]] = {"direct": [], "rag_k1": [], "rag_k3": []}
    for item in asked:
        ids = _with_distractors(item.passage_id, people, namesakes, rng)
        rng.shuffle(ids)
        prompts["direct"].append(LAB_PROMPTS.prompt(item.question))
        prompts["rag_k1"].append(LAB_PROMPTS.prompt(item.question, [corpus[item.passage_id]]))
        prompts["rag_k3"].append(LAB_PROMPTS.prompt(item.question, [corpus[i] for i in ids]))
    answers = [item.answers[0] for item in asked]
    scores = {name: _score(lm, texts, answers) for name, texts in prompts.items()}
    return {**scores, "memorised": _score_memory(lm, world, rng, questions)}


def _with_distractors(passage_id: str, people: dict, namesakes: Namesakes, rng: random.Random) -> list[str]:  # type: ignore[type-arg]
    ids = {passage_id}
    for _ in range(50):
        if len(ids) < 3:
            ids.add(namesakes.sample(people[passage_id], rng).passage_id)
    while len(ids) < 3:
        ids.add(rng.choice(list(people)))
    return sorted(ids)


def _score_memory(lm: LanguageModel, world: World, rng: random.Random, questions: int) -> float:
    pairs = [(rng.choice(world.memorised), rng.choice(ATTRIBUTES)) for _ in range(questions)]
    prompts = [LAB_PROMPTS.prompt(question(person, attribute, rng)) for person, attribute in pairs]
    return _score(lm, prompts, [person.values[attribute] for person, attribute in pairs])


def _score(lm: LanguageModel, prompts: list[str], answers: list[str]) -> float:
    hits = 0
    for start in range(0, len(prompts), _BATCH):
        batch = generate(lm, [GenerationRequest(prompt) for prompt in prompts[start : start + _BATCH]])
        hits += sum(exact_match(item.text, [answer]) for item, answer in zip(batch, answers[start:], strict=False))
    return round(hits / len(prompts), 4)


def _log(progress: Progress) -> None:
    averages = "  ".join(f"{name} {value:.2f}" for name, value in progress.averages.items())
    logger.info("step %d/%d  %.0f s  answer accuracy: %s", progress.step, progress.steps, progress.seconds, averages)
