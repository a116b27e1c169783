"""The lab's tokenizer: byte-level BPE in which every name piece and every value is one token."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from regrad.errors import ModelError
from regrad.lab.wording import ATTRIBUTES, LAB_PROMPTS
from regrad.lab.world import World, passage, question

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2


def train_tokenizer(
    world: World, seed: int = 1, people: int = 20_000, vocabulary: int = 3000
) -> PreTrainedTokenizerFast:
    """Learn the tokenizer from texts about people of the reading split; raises `ModelError` if a value splits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(world, random.Random(seed), people), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    check_single_tokens(fast, world)
    return fast


def check_single_tokens(tokenizer: PreTrainedTokenizerFast, world: World) -> None:
    """Raise `ModelError` unless every name piece and value, after a space, is exactly one token."""
    for word in [*world.first_names, *world.last_names, *world.values]:
        if len(tokenizer.encode(f" {word}", add_special_tokens=False)) != 1:
            raise ModelError(
                f"the lab tokenizer splits {word!r}; tokenizer and world do not belong together",
                code="tokenizer_splits",
                word=word,
            )


def _texts(world: World, rng: random.Random, people: int) -> Iterator[str]:
    for person in rng.sample(world.reading, people):
        document = LAB_PROMPTS.passage_text(passage(person, rng))
        attribute = rng.choice(ATTRIBUTES)
        yield f" {document}"
        yield f"Question: {question(person, attribute, rng)}\nAnswer: {person.values[attribute]}"
        yield f"Passage: {document}"
