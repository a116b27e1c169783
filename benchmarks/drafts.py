"""Passes and processor time of answers with and without drafts, on questions whose passages are known.

    python benchmarks/drafts.py --model smollm2-135m --json drafts.json        (--quick: the lab's model, few questions)

Every question is asked with its passages in the prompt and with its passages beside an update alone, as `regrad` asks;
so many questions at a time. All are decoded by an engine without drafts and by one with them, one after the other in an
order that changes with every batch. `passes a token`: decoding passes that a request took part in, over its tokens.
`same tokens`: requests whose tokens are those without drafts. The passages are invented people, the updates random.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from time import process_time
from typing import Any

import torch
from common import model_config, show, write

from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Row
from regrad.lab.world import World, passage
from regrad.models.loading import LanguageModel, load_language_model

_QUESTIONS = ("Who is {}? Answer with a sentence from the text.", "Tell me all that is known about {}.")


def requests(lm: LanguageModel, count: int, in_prompt: bool, new_tokens: int) -> list[DecodingRequest]:
    """Questions about people, with three passages each and an update."""
    rng, people, found = random.Random(0), World().held_out, []
    for number in range(count):
        three = rng.sample(people, 3)
        passages = [passage(person, rng) for person in three]
        question = _QUESTIONS[number % len(_QUESTIONS)].format(passages[-1].title)
        generator = torch.Generator().manual_seed(number)
        vector = lm.subspace.initial(number) + 1e-3 * torch.randn(lm.subspace.size, generator=generator)
        prompt = lm.config.prompts.prompt(question, passages if in_prompt else ())
        sources = () if in_prompt else tuple(item.text for item in passages)
        found.append(DecodingRequest(prompt, lm.subspace.updates(vector), new_tokens, stop=(), sources=sources))
    return found


def decoded(lm: LanguageModel, asked: Sequence[DecodingRequest], draft_tokens: int) -> tuple[float, list[Row]]:
    """Seconds of the processor from the first token to the last, and the rows."""
    engine = Engine(lm, max_rows=len(asked), draft_tokens=draft_tokens)
    rows = [engine.submit(request, lambda _: None) for request in asked]
    while not all(row.written for row in rows):
        engine.step()
    started = process_time()
    while engine.step():
        pass
    took = process_time() - started
    engine.close()
    return took, rows


def compare(lm: LanguageModel, asked: Sequence[DecodingRequest], at_once: int, draft_tokens: int) -> dict[str, Any]:
    """All requests, so many at once, without drafts and with them."""
    ratios, passes, tokens, same = [], 0, 0, 0
    for start in range(0, len(asked), at_once):
        batch = asked[start : start + at_once]
        order = (0, draft_tokens) if start // at_once % 2 else (draft_tokens, 0)
        found = {each: decoded(lm, batch, each) for each in order}
        (seconds, without), (drafted_seconds, drafted) = found[0], found[draft_tokens]
        ratios.append(drafted_seconds / seconds)
        passes += sum(row.passes for row in drafted)
        tokens += sum(len(row.written) for row in drafted)
        same += sum(one.written == other.written for one, other in zip(without, drafted, strict=True))
    lower, median, upper = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "at once": at_once,
        "draft": draft_tokens,
        "tokens": tokens,
        "passes a token": passes / tokens,
        "CPU over none": median,
        "quartiles": f"{lower:.2f} {upper:.2f}",
        "same tokens": f"{same}/{len(asked)}",
    }


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="as `model.path`; without it the lab's")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--draft-tokens", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="the lab's model and four questions")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    lm = load_language_model(model_config(arguments), device)
    rows, figures = [], {}
    for in_prompt in (True, False):
        count = 4 if arguments.quick else arguments.questions
        asked = requests(lm, count, in_prompt, arguments.new_tokens)
        for at_once in arguments.at_once:
            row = {"passages": "prompt" if in_prompt else "update"} | compare(
                lm, asked, at_once, arguments.draft_tokens
            )
            rows.append(row)
            place = f"{row['passages']}_{at_once}"
            figures |= {f"passes_a_token_{place}": row["passes a token"], f"same_tokens_{place}": row["same tokens"]}
            print(row, flush=True)
    show(rows)
    if arguments.json:
        write(arguments.json, figures, rows, device)


if __name__ == "__main__":
    main()
