"""What it saves to read once, as far as no update reaches, what several requests have in common.

    python benchmarks/shared_prefill.py --model models/smollm2-135m --json shared.json      (--quick: the lab's model)

`leave one out`: the answer's loss under all of k gradients and without each one, k + 1 updates over one text, shared
and row by row. `methods`: one question by direct, regrad, rag and regrad+icl together, as `/v1/compare` asks it, to the
first token. `demonstrations`: questions with the same solved examples before them, each with an update of its own, to
the first token. `one after the other`: questions behind one system text, each asked when the one before is answered,
from the third on, to the first token, by an engine that keeps what prompts begin with and by one that does not; and
such as have nothing in common (`apart`), to see what looking for it costs.

The first two are measured for each of `--acts-on`: with updates that act on everything the blocks below the first
adapted one are shared, with those that act on the answer (`activated`) the whole model is. The ways take turns; ratios
of processor time, median and quartiles. `same`: how far the losses are the same, and how many answers have the same
tokens; the figure `exact` is true if all losses are the same to the last bit, under updates that act on everything: the
others are sums in another order.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from time import process_time
from typing import Any, get_args

import torch
from common import model_config, show, write
from torch import Tensor

from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.lab.world import World, passage
from regrad.meta_init import MetaInit
from regrad.methods.regrad import BoundMetaInit
from regrad.models.batching import pad_batch, sequence_losses
from regrad.models.config import ActsOn
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.subspace import Update

Row = dict[str, Any]
_EXAMPLES = 4


def vectors(lm: LanguageModel, count: int, seed: int) -> list[Tensor]:
    """Random updates that change what the model says."""
    generator = torch.Generator().manual_seed(seed)
    start = lm.subspace.initial(seed)
    return [start + 1e-3 * torch.randn(lm.subspace.size, generator=generator) for _ in range(count)]


def update(lm: LanguageModel, seed: int, acts_on: ActsOn = "everything") -> tuple[Update, ...]:
    """One request's."""
    return lm.subspace.updates(vectors(lm, 1, seed)[0], acts_on)


def named(case: str, acts_on: ActsOn) -> str:
    """A case's name."""
    return case if acts_on == "everything" else f"{case}, activated"


def person(number: int) -> tuple[str, list[Any]]:
    """A question, and three passages about invented people."""
    rng = random.Random(number)
    three = [passage(each, rng) for each in rng.sample(World().held_out, 3)]
    return f"Where was {three[0].title} born, and what is their work?", three


def ratios(measured: Callable[[bool], float], turns: int) -> tuple[float, str]:
    """Processor time row by row over that of shared reading: the median, and the quartiles."""
    measured(True), measured(False)
    found = []
    for turn in range(turns):
        times = {shared: measured(shared) for shared in ((True, False) if turn % 2 else (False, True))}
        found.append(times[False] / times[True])
    lower, median, upper = statistics.quantiles(found, n=4)
    return median, f"{lower:.2f} {upper:.2f}"


def row_by_row(lm: LanguageModel, prompt: str, answer: str, updates: Sequence[Tensor]) -> list[float]:
    """The losses under updates that act on the answer, by a mask, with nothing shared."""
    start, prompts = lm.encode_prompt(prompt), lm.config.prompts
    ids = start + lm.encode(prompts.reply(answer) + prompts.stop)
    batch = pad_batch([ids] * len(updates), [len(start)] * len(updates), lm.pad_id, lm.device)
    with torch.inference_mode(), lm.lora.applied(torch.stack(list(updates)), batch.acted_on("answer")):
        found: list[float] = sequence_losses(lm, batch, "sum").tolist()
    return found


def leave_one_out(lm: LanguageModel, k: int, turns: int, acts_on: ActsOn) -> Row:
    """The losses of k + 1 updates over one prompt and answer."""
    sizes = torch.ones(len(lm.subspace.shapes))
    start = MetaInit(lm.config, lm.identity(), lm.subspace, lm.subspace.initial(), sizes, acts_on=acts_on)
    bound = BoundMetaInit(lm, start)
    question, _ = person(0)
    prompt = lm.config.prompts.prompt(question)
    answer = "She was born in a small town by the sea and has worked as a teacher there for many years."
    updates, losses = vectors(lm, k + 1, 0), {}
    lower = lm.blocks.lower

    def measured(shared: bool) -> float:
        lm.blocks.lower = lower if shared else []
        try:
            started = process_time()
            if shared or acts_on == "everything":
                losses[shared] = bound.losses(prompt, answer, updates)
            else:
                losses[shared] = row_by_row(lm, prompt, answer, updates)
            return process_time() - started
        finally:
            lm.blocks.lower = lower

    speedup, spread = ratios(measured, turns)
    difference = max(abs(one - other) for one, other in zip(losses[True], losses[False], strict=True))
    same = "to the bit" if difference == 0 else f"to {difference:.1g} nats"
    name = named(f"leave one out, k={k}", acts_on)
    return {"case": name, "rows": k + 1, "speedup": speedup, "quartiles": spread, "same": same}


def decoded(lm: LanguageModel, name: str, asked: Sequence[DecodingRequest], turns: int) -> Row:
    """Requests that come together, to the first token of each; then whole, to compare what they say."""

    def measured(shared: bool) -> float:
        engine = Engine(lm, max_rows=len(asked), share_prompts=shared)
        rows = [engine.submit(request, lambda _: None) for request in asked]
        started = process_time()
        while not all(row.written for row in rows):
            engine.step()
        took = process_time() - started
        engine.fail(RuntimeError("measured"), waiting=True)
        engine.close()
        return took

    def written(shared: bool) -> list[list[int]]:
        engine = Engine(lm, max_rows=len(asked), share_prompts=shared)
        rows = [engine.submit(request, lambda _: None) for request in asked]
        while engine.step():
            pass
        engine.close()
        return [row.written for row in rows]

    speedup, spread = ratios(measured, turns)
    pairs = list(zip(written(True), written(False), strict=True))
    same = sum(one == other for one, other in pairs)
    found: Row = {"case": name, "rows": len(asked), "speedup": speedup, "quartiles": spread}
    return found | {"same": f"tokens of {same}/{len(pairs)}"}


def methods(lm: LanguageModel, tokens: int, acts_on: ActsOn) -> list[DecodingRequest]:
    """direct, regrad, rag, regrad+icl of one question."""
    question, passages = person(1)
    prompts, one = [lm.config.prompts.prompt(question, given) for given in ((), passages)], update(lm, 1, acts_on)
    return [DecodingRequest(prompt, each, tokens, stop=()) for prompt in prompts for each in ((), one)]


def demonstrations(lm: LanguageModel, count: int, tokens: int) -> list[DecodingRequest]:
    """Questions behind the same solved ones, as many of these as fit the model's context."""
    prompts = lm.config.prompts
    solved = [prompts.prompt(*person(100 + i)) + " In a small town.\n" for i in range(_EXAMPLES)]
    asked = [prompts.prompt(person(i)[0]) for i in range(count)]
    while max(len(lm.encode_prompt("".join(solved) + one)) for one in asked) > lm.within(1 << 20) - tokens:
        solved.pop()
    return [DecodingRequest("".join(solved) + one, update(lm, i), tokens, stop=()) for i, one in enumerate(asked)]


_SYSTEM = (
    "You answer questions about people. Use what you know of them and what the passages say, if there are any. "
    "Give the name of a place, a person or a profession and nothing else: no sentence, no explanation, no full stop. "
    "If somebody has had several professions, give the one that the person is known for. If a place has changed its "
    "name, give the name that it has today. Dates are written as day, month and year. If you do not know the answer, "
    "write that it is not known; do not guess. Never repeat the question, and never mention these rules. "
)


def behind_system_text(
    lm: LanguageModel, kind: str, number: int, tokens: int, static: tuple[Update, ...]
) -> DecodingRequest:
    """A question of its own behind the system text, or (`apart`) behind one that begins in another way."""
    acts_on: dict[str, ActsOn] = {"updates": "everything", "activated": "answer"}
    one = update(lm, number, acts_on[kind]) if kind in acts_on else static if kind == "one update" else ()
    head = f"{number} {_SYSTEM}" if kind == "apart" else _SYSTEM
    return DecodingRequest(head + lm.config.prompts.prompt(person(number)[0]), one, tokens, stop=())


def one_after_the_other(lm: LanguageModel, kind: str, turns: int, tokens: int) -> Row:
    """Two questions a turn, after two to begin with, by an engine that keeps what prompts begin with and by another."""
    engines = {True: Engine(lm, max_rows=4, prefix_bytes=1 << 28), False: Engine(lm, max_rows=4)}
    static, ratios_found, same = update(lm, 0), list[float](), list[bool]()

    def answered(kept: bool, request: DecodingRequest) -> tuple[float, list[int]]:
        """Processor time to the first token, and all tokens."""
        started, engine = process_time(), engines[kept]
        row = engine.submit(request, lambda _: None)
        while not row.written:
            engine.step()
        took = process_time() - started
        while engine.step():
            pass
        return took, row.written

    for turn in range(turns + 1):
        two = [behind_system_text(lm, kind, 2 * turn + each, tokens, static) for each in range(2)]
        found = {kept: [answered(kept, one) for one in two] for kept in ((True, False) if turn % 2 else (False, True))}
        took = {kept: sum(seconds for seconds, _ in each) for kept, each in found.items()}
        same += [one[1] == other[1] for one, other in zip(found[True], found[False], strict=True)]
        ratios_found += [took[False] / took[True]] if turn else []
    for engine in engines.values():
        engine.close()
    lower, median, upper = statistics.quantiles(ratios_found, n=4)
    row: Row = {"case": f"one after the other, {kind}", "rows": 1, "speedup": median}
    return row | {"quartiles": f"{lower:.2f} {upper:.2f}", "same": f"tokens of {sum(same)}/{len(same)}"}


CASES = ("leave-one-out", "methods", "demonstrations", "one-after-the-other")


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="as `model.path`; without it the lab's")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--acts-on", nargs="+", choices=get_args(ActsOn), default=[*get_args(ActsOn)])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="the lab's model, few turns")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lm = load_language_model(model_config(arguments), "cpu")
    turns = 3 if arguments.quick else arguments.turns
    rows: list[Row] = []
    figures: Row = {}
    tokens = arguments.new_tokens
    for acts_on in arguments.acts_on:
        ending = "" if acts_on == "everything" else "_activated"
        if "leave-one-out" in arguments.cases:
            left_out = [leave_one_out(lm, k, turns, acts_on) for k in arguments.k]
            figures |= {
                f"leave_one_out_speedup_k{k}{ending}": left_out[i]["speedup"] for i, k in enumerate(arguments.k)
            }
            if acts_on == "everything":
                figures["exact"] = all(row["same"] == "to the bit" for row in left_out)
            rows += left_out
        if "methods" in arguments.cases:
            rows.append(decoded(lm, named("methods", acts_on), methods(lm, tokens, acts_on), turns))
            figures[f"methods_speedup{ending}"] = rows[-1]["speedup"]
    if "demonstrations" in arguments.cases:
        rows += [decoded(lm, "demonstrations", demonstrations(lm, n, tokens), turns) for n in (2, 4)]
    if "one-after-the-other" in arguments.cases:
        for kind in ("no update", "updates", "activated", "one update", "apart"):
            rows.append(one_after_the_other(lm, kind, turns, tokens))
            figures[f"one_after_the_other_{kind.replace(' ', '_')}"] = rows[-1]["speedup"]
    show(rows)
    if arguments.json:
        write(arguments.json, figures, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
