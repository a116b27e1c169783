"""A copy of the lab's base that also writes questions.

In pre-training, questions were given and only their answers were learned, so the base cannot continue `Question:`. It
learns that in a few steps on the people of the reading split, never on those of the meta or held-out split. A language
model that was trained on ordinary text needs no such step.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import torch

from regrad.lab.config import LabWriterConfig
from regrad.lab.wording import ATTRIBUTES
from regrad.lab.world import World, passage, question
from regrad.models.batching import pad_batch, sequence_losses
from regrad.models.loading import LanguageModel, load_language_model
from regrad.storage import check_replaceable, directory_writer

logger = logging.getLogger(__name__)

_CARD = "config.json"
_WARMUP_STEPS = 20


def make_writer(config: LabWriterConfig) -> str:
    """Train and write `config.output` in Hugging Face format; returns the closing line."""
    check_replaceable(config.output, _CARD)
    lm = load_language_model(config.model, "cpu")
    loss = teach(lm, World(), config, lambda line: logger.info("%s", line))
    with directory_writer(config.output, _CARD) as folder:
        lm.model.save_pretrained(str(folder))  # type: ignore[operator]
        lm.tokenizer.save_pretrained(str(folder))
    return f"question writer at {config.output}: {config.steps} steps, loss {loss:.3f}"


def teach(
    lm: LanguageModel, world: World, config: LabWriterConfig, show: Callable[[str], None] = lambda _: None
) -> float:
    """Train all weights of `lm` in place; returns the last mean token loss of questions and answers."""
    rng, loss = random.Random(config.seed), 0.0
    lm.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=config.lr, weight_decay=0.0)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / _WARMUP_STEPS, 2 * (1 - step / config.steps))
        examples = [_example(lm, world, rng) for _ in range(config.batch_size)]
        batch = pad_batch([ids for ids, _ in examples], [start for _, start in examples], lm.pad_id, lm.device)
        batch_loss = sequence_losses(lm, batch).mean()
        optimizer.zero_grad()
        batch_loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
        optimizer.step()
        loss = float(batch_loss.detach())
        if (step + 1) % 50 == 0 or step + 1 == config.steps:
            show(f"step {step + 1}/{config.steps}  loss {loss:.3f}")
    lm.model.requires_grad_(False)
    return loss


def _example(lm: LanguageModel, world: World, rng: random.Random) -> tuple[list[int], int]:
    """A passage with one question and its answer, and where the question's words start."""
    person, attribute = rng.choice(world.reading), rng.choice(ATTRIBUTES)
    document, prompts = passage(person, rng), lm.config.prompts
    before = prompts.context_text([document]) + prompts.question.partition("{question}")[0].rstrip()
    text = prompts.prompt(question(person, attribute, rng), [document])
    ids = [*lm.bos, *lm.encode(text + prompts.answer_text(person.values[attribute])), *lm.eos]
    return ids, len(lm.bos) + len(lm.encode(before))
