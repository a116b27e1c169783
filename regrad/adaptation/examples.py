"""What a LoRA is trained on, as token ids: passages, passages with questions, questions, and PRAG's sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regrad.adaptation.augmented import Augmented, Pair
from regrad.atoms.gradients import encode_passage
from regrad.corpus import Passage
from regrad.language_model.batching import TokenBatch, pad_batch
from regrad.language_model.loading import LanguageModel

_STOPS = (".", ",", ";", ":", "!", "?")
_LEAST_WORDS = 3


@dataclass(frozen=True)
class Example:
    """Token ids, of which the first `start` are given and the others predicted."""

    ids: tuple[int, ...]
    start: int = 1

    @property
    def predicts(self) -> bool:
        """Whether there is anything to predict."""
        return len(self.ids) > max(1, self.start)


def example_batch(lm: LanguageModel, examples: Sequence[Example]) -> TokenBatch:
    """Examples as padded tensors."""
    return pad_batch([item.ids for item in examples], [item.start for item in examples], lm.pad_id, lm.device)


def longest(lm: LanguageModel, max_tokens: int) -> int:
    """The tokens that an example may have: the model's context, or `max_tokens` if that is less."""
    context: int | None = getattr(lm.model.config, "max_position_embeddings", None)
    return min(max_tokens, context or max_tokens)


def passage_example(lm: LanguageModel, passage: Passage) -> Example:
    """All of a passage, as in continual pre-training: the text whose gradient would be its atom."""
    return Example(tuple(encode_passage(lm, passage)))


def suffix_example(lm: LanguageModel, passage: Passage) -> Example:
    """The second part of a passage's text, predicted from the first.

    They meet at the first full stop, else comma and so on, that leaves three words on both sides, else in the middle.
    """
    text = lm.config.prompts.passage_text(passage)
    cut = _middle(text)
    prefix = [*lm.bos, *lm.encode(text[:cut])]
    return Example((*prefix, *lm.encode(text[cut:]), *lm.eos), len(prefix))


def _middle(text: str) -> int:
    for stop in _STOPS:
        for place in (i + 1 for i, character in enumerate(text) if character == stop):
            if min(len(text[:place].split()), len(text[place:].split())) >= _LEAST_WORDS:
                return place
    words = text.split(" ")
    return len(" ".join(words[: len(words) // 2]))


def instruction_example(lm: LanguageModel, item: Augmented) -> Example:
    """A passage and its questions with their answers in one text, all of it predicted: instruction pre-training.

    It is text to read, as a passage is, and no chat: a chat template is not put around it.
    """
    prompts = lm.config.prompts
    asked = "".join(
        prompts.question.format(question=pair.question) + prompts.answer_text(pair.answer) + prompts.stop
        for pair in item.pairs
    )
    return Example((*lm.bos, *lm.encode(prompts.context_text([item.passage]) + asked), *lm.eos))


def question_example(
    lm: LanguageModel, question: str, answer: str, passages: Sequence[Passage] = (), max_tokens: int = 1 << 30
) -> Example:
    """The answer, predicted from the prompt, in which `passages` stand best last.

    The worst passages are left out until it is short enough; without any it may still be too long.
    """
    limit, shown = longest(lm, max_tokens), list(passages)
    while True:
        example = _asked(lm, question, answer, shown)
        if not shown or len(example.ids) <= limit:
            return example
        shown = shown[1:]


def _asked(lm: LanguageModel, question: str, answer: str, passages: Sequence[Passage]) -> Example:
    """The prompt as it is asked, with the model's chat template if it has one, then the answer and the end."""
    prompt = lm.encode_prompt(lm.config.prompts.prompt(question, passages))
    return Example((*prompt, *lm.encode(lm.config.prompts.answer_text(answer)), *lm.eos), len(prompt))


def adapter_examples(lm: LanguageModel, item: Augmented, pairs: int | None = None) -> list[Example]:
    """PRAG's sequences of one passage, in its order, each predicted as a whole, the chat template included.

    The first half of the questions (two of three) comes with the passage in the prompt and again with each rewrite;
    the others come without.
    """
    asked = item.pairs[:pairs]
    with_text = (len(asked) + 1) // 2
    texts = [item.passage, *(Passage(item.passage.id, item.passage.title, text) for text in item.rewrites)]
    read = [_whole(lm, pair, [text]) for pair in asked[:with_text] for text in texts]
    return read + [_whole(lm, pair) for pair in asked[with_text:]]


def _whole(lm: LanguageModel, pair: Pair, passages: Sequence[Passage] = ()) -> Example:
    return Example(_asked(lm, pair.question, pair.answer, passages).ids)
