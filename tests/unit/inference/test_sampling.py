"""Sampling: a row's text depends on its prompt and its numbers, and on nothing else in the batch."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from regrad.inference.decoding import GenerationRequest, draws, generate, sample
from regrad.models.loading import LanguageModel

PROMPTS = ["Question: Where was Les Dripen born?\nAnswer:", "Passage: Ada\n x\nQuestion: Who?\nAnswer:", "a"]


def texts(lm: LanguageModel, prompts: list[str], numbers: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> list:
    return [item.text for item in sample(lm, prompts, numbers, temperature, top_p, lambda _: False)]


def test_a_row_gets_the_same_text_alone_and_in_any_batch(tiny: LanguageModel) -> None:
    numbers = torch.cat([draws(prompt, 2, 8) for prompt in PROMPTS])
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    together = texts(tiny, prompts, numbers)
    assert len(set(together)) == len(together)
    for row in range(len(prompts)):
        assert texts(tiny, prompts[row : row + 1], numbers[row : row + 1]) == [together[row]]
    order = [4, 2, 0, 5, 1, 3]
    assert texts(tiny, [prompts[i] for i in order], numbers[order]) == [together[i] for i in order]


def test_numbers_depend_on_their_key_alone() -> None:
    assert draws("0/a", 2, 5).equal(draws("0/a", 2, 5))
    assert not draws("0/a", 2, 5).equal(draws("1/a", 2, 5))
    assert draws("0/a", 2, 5).tolist()[0][0] == 0.6049853684112572, "the same on every machine"


def test_tokens_come_as_often_as_the_model_says(tiny: LanguageModel) -> None:
    """2,000 draws of the first token against softmax: the largest deviation is within five standard errors."""
    rows, prompt = 2000, "a"
    found = Counter(texts(tiny, [prompt] * rows, draws("frequencies", rows, 1)))
    ids = torch.tensor([tiny.bos + tiny.encode(prompt)])
    probabilities = tiny.logits(tiny.hidden(ids)[0, -1]).softmax(-1)
    best = probabilities.topk(5)
    for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        error = (probability * (1 - probability) / rows) ** 0.5
        assert abs(found[tiny.tokenizer.decode([token])] / rows - probability) < 5 * error


def test_without_temperature_or_with_a_small_nucleus_it_is_greedy(tiny: LanguageModel) -> None:
    greedy = generate(tiny, [GenerationRequest(prompt, (), 6) for prompt in PROMPTS])
    cold = texts(tiny, PROMPTS, draws("x", 3, 6), temperature=1e-3)
    narrow = texts(tiny, PROMPTS, draws("x", 3, 6), top_p=1e-6)
    assert cold == narrow
    assert [text.lstrip().split("\n")[0].strip() for text in cold] == [item.text for item in greedy]


def test_a_row_that_is_done_says_so(tiny: LanguageModel) -> None:
    ended, cut = (
        sample(tiny, ["a"], draws("y", 1, 4), 1.0, 1.0, lambda _, done=done: done)[0] for done in (True, False)
    )
    assert ended.complete
    assert not cut.complete
    assert cut.text.startswith(ended.text)
    assert sample(tiny, [], draws("y", 0, 4), 1.0, 1.0, lambda _: True) == []
