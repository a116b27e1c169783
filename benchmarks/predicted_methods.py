"""RAG-GD on the lab: what a predicted update is worth beside none, the steps themselves, and updates without a context.

    python benchmarks/predicted_methods.py --json predicted_methods.json

A question has two passages about a person that contradict each other, in either order. Of one kind of question the
best ranked passage is right, of the other kind the second: what tells them apart is in the demonstrations alone. W0 is
trained on both kinds mixed, the predictor on contexts of three solved questions of one kind. Asked are questions about
people that no training had, of the demonstrations' kind. Scores are teacher-forced: `right` says that every token of
the answer, its end included, is the most probable one, so that greedy decoding gives the answer; `nats` is the mean
loss of a token. Prompt tuning is trained on W0's data and reads no context. Weights, draws and contexts differ between
seeds; the lab does not. With `--held-out` no training has a question of these attributes, and asked are those alone.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import in_turn, show, write
from torch import Tensor

from regrad.lab.files import DEV_PEOPLE
from regrad.lab.sets import Conflict
from regrad.lab.wording import ATTRIBUTES
from regrad.lab.world import Person, World, passage, question
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.subspace import Subspace
from regrad.settings import builtin_config, load_settings
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import Example, example_batch
from regrad.training.lora.finetuning import Trained, finetune_in_process
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.lora.soft_prompt import SoftPrompt
from regrad.training.predictor.artifact import UpdatePredictor, added
from regrad.training.predictor.config import ContextConfig, PredictorConfig, StepsConfig
from regrad.training.predictor.contexts import TaskContexts, steps_on
from regrad.training.predictor.learner import predictor_in_process

KINDS = ("first", "second")
CONTEXT = ContextConfig(demonstrations=3, k=2, max_tokens=400)
ASKED, QUESTIONS, PEOPLE = 3, 32, 300
CROSSED = ("rag-gd", "hypertuning")
"""Asked with the other kind's demonstrations, too."""


def write_tasks(folder: Path, held_out: Sequence[str] = ()) -> None:
    """A file of training tasks for each kind, and one of other people to be asked about.

    Of attributes that are `held_out` no training has a question, and all that are asked are about them.
    """
    world = World()
    lab = Conflict(world)
    trained = [name for name in ATTRIBUTES if name not in held_out]
    parts = ("train", world.meta[:PEOPLE], trained), ("asked", world.meta[-DEV_PEOPLE:], held_out or trained)
    for part, people, attributes in parts:
        (folder / part).mkdir(exist_ok=True)
        for kind in KINDS:
            rng = random.Random(f"{part}/{kind}")
            made = [contradiction(lab, person, KINDS.index(kind), attributes, rng) for person in people]
            (folder / part / f"{kind}.jsonl").write_text("\n".join(json.dumps(task) for task in made if task))


def contradiction(
    lab: Conflict, person: Person, right: int, attributes: Sequence[str], rng: random.Random
) -> dict[str, Any] | None:
    """A task: two versions of a person in random order, and a question that passage number `right` answers.

    About one of `attributes` in which the versions differ; nothing if they do not.
    """
    versions = [person, lab.former(person)]
    rng.shuffle(versions)
    shown = [replace(passage(version, rng), id=f"{person.passage_id}.{n}") for n, version in enumerate(versions)]
    values = versions[0].values.items()
    changed = [name for name, value in values if name in attributes and versions[1].values[name] != value]
    if not changed:
        return None
    attribute = rng.choice(changed)
    asked = {"question": question(person, attribute, rng), "answer": versions[right].values[attribute]}
    passages = [{"id": item.id, "title": item.title, "text": item.text} for item in shown]
    return {"id": person.passage_id, "passages": passages, "questions": [asked | {"context": [0, 1]}]}


def on_both_kinds(folder: Path, seed: int, *more: str) -> Trained:
    """What `regrad finetune` makes of the training tasks."""
    values = [f"tasks={folder}/train", f"output={folder}/adapter", f"seed={seed}", "k=2", "cluster.workers=1"]
    values += ["optimizer.batch_size=12", *more]
    return finetune_in_process(load_settings(FinetuneConfig, builtin_config("jobs/finetune-rag-gd-lab.yaml"), values))


def base_adapter(folder: Path, seed: int) -> StaticLora:
    """W0, of both kinds."""
    made = on_both_kinds(folder, seed, "optimizer.steps=40")
    assert isinstance(made, StaticLora)
    made.save(folder / "adapter")
    return made


def soft_prompt(folder: Path, seed: int, options: argparse.Namespace) -> SoftPrompt:
    """Of the same data, the base frozen, in more steps."""
    steps = [f"optimizer.steps={options.prompt_steps}", f"optimizer.lr={options.prompt_lr}"]
    made = on_both_kinds(folder, seed, "soft_prompt.tokens=20", *steps)
    assert isinstance(made, SoftPrompt)
    return made


def predictor(folder: Path, seed: int, options: argparse.Namespace, objective: str = "steps") -> UpdatePredictor:
    """Trained on contexts of both kinds, each of one kind; of objective `answers` with one more question of that."""
    values = [f"adapter={folder}/adapter", f"output={folder}/none", f"seed={seed}", f"space={options.space}"]
    # Steps on a context cost far more than reading it: without them every draw can be new.
    contexts = options.contexts if objective == "steps" else 4 * options.steps
    values += [f"tasks=[{','.join(f'{folder}/train/{kind}.jsonl' for kind in KINDS)}]", f"contexts={contexts}"]
    values += [f"inner.lr={options.lr}", "context.k=2", "context.max_tokens=400", f"optimizer.steps={options.steps}"]
    values += ["optimizer.lr=3e-3", "cluster.workers=1", f"objective={objective}"]
    return predictor_in_process(load_settings(PredictorConfig, builtin_config("jobs/predictor-lab.yaml"), values))


@torch.no_grad()
def scored(lm: LanguageModel, examples: Sequence[Example], updates: Mapping[Subspace, Tensor]) -> tuple[float, float]:
    """The share of answers that are right, and the mean loss."""
    batch = example_batch(lm, examples)
    with lm.applied(updates):
        scores = lm.logits(lm.hidden(batch.ids[:, :-1])).log_softmax(-1)
    predicted = batch.predicted[:, 1:]
    wanted = batch.ids[:, 1:].where(predicted, 0)  # a virtual token has no score
    losses = -(scores.gather(-1, wanted[..., None])[..., 0] * predicted).sum(1) / predicted.sum(1)
    right = ((scores.argmax(-1) == wanted) | ~predicted).all(1)
    return float(right.float().mean()), float(losses.mean())


def exchanged(context: Sequence[Example]) -> list[Example]:
    """Each demonstration with the answer of the next one."""
    answers = [example.ids[example.start :] for example in context]
    pairs = zip(context, answers[1:] + answers[:1], strict=True)
    return [Example((*example.ids[: example.start], *other), example.start) for example, other in pairs]


Updates = dict[str, Callable[[Sequence[Example]], tuple[Subspace, Tensor]]]


def updates_of(
    lm: LanguageModel, adapter: StaticLora, made: UpdatePredictor, tuned: UpdatePredictor, lr: float
) -> Updates:
    """What each method makes of a context; `tuned` is HyperTuning's predictor."""

    def stepped(context: Sequence[Example]) -> tuple[Subspace, Tensor]:
        end_P = steps_on(lm, context, adapter.subspace, adapter.values, StepsConfig(steps=5, lr=lr))
        return adapter.subspace, adapter.values if end_P is None else end_P

    def predicted(context: Sequence[Example], by: UpdatePredictor = made) -> tuple[Subspace, Tensor]:
        return added(adapter, by.predict(lm, adapter, [context])[0], by.space)

    return {
        "tt-sgd": stepped,
        "rag-gd": predicted,
        "rag-gd-shuffled": lambda context: predicted(exchanged(context)),
        "rag-gd-constant": lambda context: added(adapter, made.constant, "factors"),
        "hypertuning": lambda context: predicted(context, tuned),
        "hypertuning, shuffled": lambda context: predicted(exchanged(context), tuned),
        "hypertuning, constant": lambda context: added(adapter, tuned.constant, "factors"),
    }


def one_seed(lm: LanguageModel, folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Scores of every method, by name, and what an update costs."""
    adapter = base_adapter(folder, seed)
    prompt = soft_prompt(folder, seed, options)
    virtual = prompt.put(lm)
    made = tuned = None
    updates: Updates = {"W0": lambda context: (adapter.subspace, adapter.values)}
    if not options.without_predictors:
        made, tuned = predictor(folder, seed, options), predictor(folder, seed, options, "answers")
        updates |= updates_of(lm, adapter, made, tuned, options.lr)
    crossed = [name for name in CROSSED if name in updates]
    names = [*updates, *(f"{name}, other kind's context" for name in crossed), "prompt-tuning", "no training"]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    drawn = {}
    for kind in KINDS:
        file = [str(folder / "asked" / f"{kind}.jsonl")]
        many = CONTEXT.model_copy(update={"demonstrations": QUESTIONS})
        drawn[kind] = list(TaskContexts(lm, file, CONTEXT, ASKED, seed + 100)), TaskContexts(lm, file, many, 1, seed)[0]
    for kind, other in (KINDS, KINDS[::-1]):
        contexts, asked = drawn[kind]
        for context, wrong in zip(contexts, drawn[other][0], strict=True):
            rest = [example for example in asked if example not in context]
            for name, update in updates.items():
                found[name].append(scored(lm, rest, dict([update(context)])))
            for name in crossed:
                found[f"{name}, other kind's context"].append(scored(lm, rest, dict([updates[name](wrong)])))
            found["prompt-tuning"].append(scored(lm, [example.behind(virtual) for example in rest], {}))
            found["no training"].append(scored(lm, rest, {}))
    row = {
        "seed": seed,
        "scores": {n: [statistics.fmean(column) for column in zip(*rows, strict=True)] for n, rows in found.items()},
        "prompt_nats": statistics.fmean(prompt.notes["losses"][-20:]),
        "base_nats": statistics.fmean(adapter.notes["losses"][-20:]),
        "prompt_seconds": prompt.notes["seconds"],
        "base_seconds": adapter.notes["seconds"],
        "prompt_bytes": prompt.size_bytes,
    }
    if made is None or tuned is None:
        return row
    context = drawn["first"][0][0]
    runs = {"tt-sgd": lambda: updates["tt-sgd"](context), "rag-gd": lambda: updates["rag-gd"](context)}
    seconds = in_turn(runs, options.repeats, lm.device)
    return row | {
        "tt_sgd_ms": 1e3 * seconds["tt-sgd"],
        "rag_gd_ms": 1e3 * seconds["rag-gd"],
        "share": made.notes["share"],
        "first_loss": statistics.fmean(made.notes["losses"][:20]),
        "last_loss": statistics.fmean(made.notes["losses"][-20:]),
        "first_nats": statistics.fmean(tuned.notes["losses"][:20]),
        "last_nats": statistics.fmean(tuned.notes["losses"][-20:]),
    }


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the differences of each."""

    def right(row: Mapping[str, Any], name: str) -> float:
        return float(row["scores"][name][0])

    pairs = {
        "rag_gd_minus_base": ("rag-gd", "W0"),
        "rag_gd_minus_constant_update": ("rag-gd", "rag-gd-constant"),
        "rag_gd_minus_shuffled": ("rag-gd", "rag-gd-shuffled"),
        "rag_gd_minus_other_context": ("rag-gd", "rag-gd, other kind's context"),
        "tt_sgd_minus_base": ("tt-sgd", "W0"),
        "hypertuning_minus_base": ("hypertuning", "W0"),
        "hypertuning_minus_constant_update": ("hypertuning", "hypertuning, constant"),
        "hypertuning_minus_other_context": ("hypertuning", "hypertuning, other kind's context"),
        "prompt_tuning_minus_base": ("prompt-tuning", "W0"),
        "prompt_tuning_minus_no_training": ("prompt-tuning", "no training"),
    }
    figures: dict[str, Any] = {}
    if "share" in rows[0]:
        figures["rag_gd_cost_over_tt_sgd"] = statistics.fmean(row["rag_gd_ms"] / row["tt_sgd_ms"] for row in rows)
        figures["predictor_over_backbone"] = rows[0]["share"]
    for name, (one, other) in pairs.items():
        if not {one, other} <= rows[0]["scores"].keys():
            continue
        differences = [right(row, one) - right(row, other) for row in rows]
        figures[name] = statistics.fmean(differences)
        figures[f"{name}_by_seed"] = differences
    return figures


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="predicted_methods.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.1, help="of the steps on a context; the paper's is 0.01")
    parser.add_argument("--contexts", type=int, default=30, help="that RAG-GD's predictor is trained on")
    parser.add_argument("--space", choices=("factors", "products"), default="factors")
    parser.add_argument("--steps", type=int, default=300, help="of the predictor's training")
    parser.add_argument("--without-predictors", action="store_true", help="W0 and prompt tuning alone: far faster")
    parser.add_argument("--prompt-steps", type=int, default=100, help="of prompt tuning")
    parser.add_argument("--prompt-lr", type=float, default=0.01, help="of prompt tuning")
    parser.add_argument("--held-out", nargs="*", default=(), choices=ATTRIBUTES, help="attributes to ask about alone")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder, options.held_out)
        lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
        rows = []
        for seed in range(options.seeds):
            rows.append(one_seed(lm, folder, seed, options))
            figures = figures_of(rows)
            write(options.json, figures, rows, lm.device)
    names = list(rows[0]["scores"])
    show(
        [
            {"method": name}
            | {f"right {row['seed']}": row["scores"][name][0] for row in rows}
            | {"nats": statistics.fmean(row["scores"][name][1] for row in rows)}
            for name in names
        ]
    )
    show([{key: value for key, value in row.items() if key != "scores"} for row in rows])
    show([{"figure": key, "value": value} for key, value in figures.items() if isinstance(value, float)])


if __name__ == "__main__":
    main()
