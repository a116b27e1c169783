"""ReGrad: atoms, updates, answers, meta-gradients, a training and the start that it saves, by both sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from regrad.bank.config import LearnedStartConfig
from regrad.bank.io.learned_start import LEARNER, PEFT, import_learned_start
from regrad.data.passages import Passage
from regrad.data.tasks import Task
from regrad.gradients.extractor import AtomExtractor, encode_passage
from regrad.inference.decoding import GenerationRequest, generate
from regrad.meta_init import MetaInit
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import collate
from regrad.training.meta.config import (
    InnerConfig,
    MetaTrainConfig,
    OptimizerConfig,
    StepSizeMode,
    StrategyConfig,
    StrategyName,
    TaskSource,
)
from regrad.training.meta.objective import Point
from regrad.training.meta.optim import MetaParameters, PlainEngine
from regrad.training.meta.strategies import make_strategy
from regrad.training.meta.trainer import MetaLearner, meta_loop
from releases.code import Release
from releases.learner import Authors, flat, their_name
from releases.rows import Row, of_largest, of_norms
from releases.subject import Subject, load

EXACT: tuple[StrategyName, ...] = ("graph", "hvp")
MODES: tuple[StepSizeMode, ...] = ("tie", "same", "full")
TRAINING = "training of 40 steps"
_K = 3
_STEPS, _BATCH, _LR = 40, 4, 4e-3


@dataclass(frozen=True)
class Sizes:
    """How much is compared."""

    passages: int = 20
    questions: int = 50
    tasks: int = 4
    steps: int = _STEPS


def rows(release: Release, subject: Subject, starts: dict[str, MetaInit], sizes: Sizes) -> Iterator[Row]:
    """Every comparison with the ReGrad release."""
    authors, lm, shipped = Authors(release, subject), load(subject.release), load(subject.shipped)
    for name, start in starts.items():
        yield from _atoms(authors, lm, shipped, start, name, subject.passages(sizes.passages))
    yield from _answers(authors, lm, starts["trained"], sizes.questions)
    tasks = subject.tasks(sizes.tasks, _K)
    for name, start in with_steep(starts).items():
        yield from _meta_gradients(authors, lm, start, name, tasks)
    yield from _training(authors, lm, shipped, starts["untrained"], sizes.steps)


def own_rows(subject: Subject, starts: dict[str, MetaInit], sizes: Sizes) -> Iterator[Row]:
    """What needs nobody else's code: how far `difference` is from `graph`, on the lab's own prompts."""
    lm = load(subject.shipped)
    batch = collate(lm, subject.tasks(sizes.tasks, _K))
    for name, start in with_steep(starts).items():
        point = Point(start.phi0, start.subspace.per_tensor(start.step_sizes))
        graph, difference, first = (
            make_strategy(StrategyConfig(name=strategy), InnerConfig())(lm, point, batch)
            for strategy in ("graph", "difference", "first-order")  # type: ignore[arg-type]
        )
        without = of_norms(first.phi0, graph.phi0)
        yield Row(
            f"difference beside graph, {name} start",
            sizes.tasks,
            of_largest(difference.phi0, graph.phi0)[0],
            of_norms(difference.phi0, graph.phi0),
            "norm",
            note=f"its own estimate {difference.error:.1e}; without the second order {without:.1e}",
        )


def with_steep(starts: dict[str, MetaInit]) -> dict[str, MetaInit]:
    """Also the untrained one with the step sizes from which the lab's trainings start."""
    untrained = starts["untrained"]
    return {**starts, "alpha 10": replace(untrained, step_sizes=torch.full_like(untrained.step_sizes, 10.0))}


def _atoms(
    authors: Authors,
    lm: LanguageModel,
    shipped: LanguageModel,
    start: MetaInit,
    name: str,
    passages: Sequence[Passage],
) -> Iterator[Row]:
    learner = authors.learner(start)
    texts = [lm.config.prompts.atom_text(passage) for passage in passages]
    theirs = torch.stack([authors.atom(learner, text, start) for text in texts])
    ids = [learner.tokenizer(text)["input_ids"] for text in texts]
    other = sum(encode_passage(lm, passage) != found for passage, found in zip(passages, ids, strict=True))
    ours, ended = (_extracted(model, start, passages) for model in (lm, shipped))
    largest, relative = of_largest(ours, theirs)
    yield Row(
        f"atoms, {name} start", len(passages), largest, relative, "of the largest number",
        of_largest(ended, theirs)[1], f"token ids that differ: {other} of {len(ids)} passages; default: an end token",
    )  # fmt: skip
    yield _updates(authors, learner, start, name, texts, ours)


def _extracted(lm: LanguageModel, start: MetaInit, passages: Sequence[Passage]) -> Tensor:
    found = AtomExtractor(lm, replace(start, model=lm.config)).extract(passages)
    return torch.stack([item.atom for item in found if item.atom is not None])


def _updates(authors: Authors, learner: Any, start: MetaInit, name: str, texts: Sequence[str], atoms_UP: Tensor) -> Row:
    """What the release's creator of models writes into the model, against phi0 - alpha * sum of our atoms."""
    creator = authors.release.Meta.MetaModelCreator(learner, GenerationConfig(), device=torch.device("cpu"))
    worst, relative, moved = 0.0, 0.0, 0
    firsts = range(0, len(texts) - _K + 1, _K)
    for first in firsts:
        creator.build({"contents": {"context": texts[first : first + _K], "dataset": "popqa", "test_id": 0}})
        theirs = flat(dict(learner.base_model.named_parameters()), start)
        ours = start.update(atoms_UP[first : first + _K].sum(0))
        worst = max(worst, of_largest(ours, theirs)[0])
        relative = max(relative, of_norms(ours - start.phi0, theirs - start.phi0))
        creator.recover()
        moved += not torch.equal(flat(dict(learner.base_model.named_parameters()), start), start.phi0)
    note = "the model is back at its start to the last bit" if not moved else f"not restored {moved} times"
    return Row(f"updates, {name} start, k={_K}", len(firsts), worst, relative, "norm, of the change", note=note)


def _answers(authors: Authors, lm: LanguageModel, start: MetaInit, count: int) -> Iterator[Row]:
    learner = authors.learner(start)
    config = GenerationConfig(max_new_tokens=20)
    creator = authors.release.Meta.MetaModelCreator(learner, config, device=torch.device("cpu"))
    extractor = AtomExtractor(lm, replace(start, model=lm.config))
    for k in (1, _K):
        asked = authors.subject.tasks(count, k, seed=9)
        theirs, requests = [], []
        for task in asked:
            texts = [lm.config.prompts.atom_text(passage) for passage in task.passages]
            box = creator.build({"contents": {"context": texts, "dataset": "popqa", "test_id": 0}})
            theirs.append(box.predict(task.questions[0].question))
            creator.recover()
            atoms = [item.atom for item in extractor.extract(task.passages) if item.atom is not None]
            update = start.update(torch.stack(atoms).sum(0))
            prompt = lm.config.prompts.prompt(task.questions[0].question)
            requests.append(GenerationRequest(prompt, lm.subspace.updates(update), 20))
        ours = [found.text.strip() for found in generate(lm, requests)]
        other = sum(a != b for a, b in zip(ours, theirs, strict=True))
        broken = sum(bool(a) and not b for a, b in zip(ours, theirs, strict=True))
        right = sum(said == task.questions[0].answer for said, task in zip(theirs, asked, strict=True))
        note = f"{right} of {count} right by the release's"
        if broken:  # regrad skips a line break with which an answer begins; the release ends there
            note += f"; {broken} begin with a line break, where the release's answer ends"
        yield Row(
            f"answers, trained start, k={k}", count, float(other), other / count, "answers that differ", note=note
        )


def _meta_gradients(
    authors: Authors, lm: LanguageModel, start: MetaInit, name: str, tasks: Sequence[Task]
) -> Iterator[Row]:
    batch = collate(lm, tasks)
    for mode in MODES:
        at = _mean_alpha(start) if mode == "same" else start
        loss, phi0, alpha = _their_gradient(authors, at, mode, lm, tasks)
        point = Point(at.phi0, at.subspace.per_tensor(at.step_sizes))
        for strategy in (*EXACT, "difference"):
            found = make_strategy(StrategyConfig(name=strategy), InnerConfig())(lm, point, batch)  # type: ignore[arg-type]
            ours = _alpha_of_mode(found.alpha, at, mode)
            largest, relative = of_largest(found.phi0, phi0)
            alphas = of_largest(ours, alpha)[1]
            note = f"alpha's {alphas:.1e}, loss {abs(float(found.loss) - loss) / loss:.1e}"
            if found.error is not None:
                note += f"; its own estimate {found.error:.1e}"
            yield Row(
                f"meta-gradient, {strategy}, mode {mode}, {name} start", len(tasks), largest,
                max(relative, alphas), "of the largest number", note=note,
            )  # fmt: skip


def _mean_alpha(start: MetaInit) -> MetaInit:
    return replace(start, step_sizes=start.step_sizes.mean().expand_as(start.step_sizes).clone())


def _their_gradient(
    authors: Authors, start: MetaInit, mode: StepSizeMode, lm: LanguageModel, tasks: Sequence[Task]
) -> tuple[float, Tensor, Tensor]:
    """The loss of a batch, and its gradients by phi0 [P] and by the step sizes of the mode."""
    learner, meta = authors.learner(start, mode), authors.release.Meta
    total = 0.0
    for task in tasks:
        tokens = meta.tokenize_task(learner.tokenizer, _datum(lm, task), max_context_len=1536)
        loss = meta.compute_loss(learner, tokens) / len(tasks)
        loss.backward()
        total += loss.item()
    named = {name: value.grad for name, value in learner.named_parameters() if value.requires_grad}
    phi0 = flat(
        {
            name.removeprefix(
                "base_model.",
            ): value
            for name, value in named.items()
        },
        start,
    )
    if mode == "same":
        return total, phi0, named["alpha"].reshape(1)
    alphas = [named[f"alpha_{their_name(name).replace('.', '-')}"].flatten() for name in start.subspace.shapes]
    return total, phi0, torch.cat(alphas)


def _alpha_of_mode(alpha_P: Tensor, start: MetaInit, mode: StepSizeMode) -> Tensor:
    if mode == "full":
        return alpha_P
    sums = torch.stack([part.sum() for part in alpha_P.split(start.subspace.lengths)])
    return sums.sum().reshape(1) if mode == "same" else sums


def _datum(lm: LanguageModel, task: Task) -> dict[str, Any]:
    """A task as the release's data sets give it."""
    question = task.questions[0]
    texts = [lm.config.prompts.atom_text(passage) for passage in task.passages]
    return {
        "context": texts,
        "qas": [(question.question, f" {question.answer}")],
        "dataset": "popqa",
        "test_id": task.id,
    }


def _training(
    authors: Authors, lm: LanguageModel, shipped: LanguageModel, start: MetaInit, steps: int
) -> Iterator[Row]:
    tasks = authors.subject.tasks(steps * _BATCH, _K, seed=7)
    losses, order, output = _their_training(authors, lm, start, tasks)
    learned = import_learned_start(
        LearnedStartConfig(source=str(output), model=lm.config, output=str(authors.subject.folder / "imported"))
    )
    batches = [[tasks[number] for number in order[first : first + _BATCH]] for first in range(0, len(order), _BATCH)]
    as_release = _optimizer(steps, weight_decay=0.01, step_size_weight_decay=0.01, warmup_start=0.01)
    ours, our_losses = _our_training(lm, start, batches, InnerConfig(step_size_space="absolute"), as_release)
    default, _ = _our_training(shipped, start, batches, InnerConfig(), _optimizer(steps))
    worst = max(abs(a - b) for a, b in zip(our_losses, losses, strict=True))
    relative = max(abs(a - b) / b for a, b in zip(our_losses, losses, strict=True))
    yield Row(
        f"{TRAINING}: losses", steps, worst, relative, "of the loss", note=f"from {losses[0]:.2f} to {losses[-1]:.2f}"
    )
    for what in ("phi0", "alpha"):
        change, other, by_default = (_change(made, start, what) for made in (learned, ours, default))
        yield Row(
            f"{TRAINING}: change of {what}",
            steps,
            of_largest(other, change)[0],
            of_norms(other, change),
            "norm, of the change",
            of_norms(by_default, change),
            f"norm of the change {float(change.norm()):.2g}, by the defaults {float(by_default.norm()):.2g}",
        )
    theirs = authors.release.Meta.load_Metalearner(str(output), device=torch.device("cpu"))
    parameters = dict(theirs.base_model.named_parameters())
    alphas = torch.stack([theirs.alpha[their_name(name)].detach() for name in start.subspace.shapes])
    read = of_largest(torch.cat([learned.phi0, learned.step_sizes]), torch.cat([flat(parameters, start), alphas]))
    yield Row("import of the start that this training saved", learned.phi0.numel(), *read, "of the largest number")


def _change(made: MetaInit, start: MetaInit, what: str) -> Tensor:
    return made.phi0 - start.phi0 if what == "phi0" else made.step_sizes - start.step_sizes


def _optimizer(steps: int, **changes: float) -> OptimizerConfig:
    return OptimizerConfig(steps=steps, batch_size=_BATCH, lr=_LR, warmup_fraction=0.1, zero_stage=None, **changes)


def _their_training(
    authors: Authors, lm: LanguageModel, start: MetaInit, tasks: Sequence[Task]
) -> tuple[list[float], list[int], Path]:
    """The release's own loop: the mean loss of each step, the order in which it drew the tasks, and what it saved."""
    meta, output = authors.release.Meta, authors.subject.folder / "trained"
    learner = authors.learner(start)
    output.mkdir()
    for name in (PEFT, LEARNER):  # the release copies them before it trains
        (output / name).write_text((authors.subject.folder / "start" / name).read_text())
    data = [_datum(lm, task) for task in tasks]
    numbers = {
        tuple(tokens): number for number, tokens in enumerate(_answer_tokens(meta, learner, item) for item in data)
    }
    order: list[int] = []
    losses: list[float] = []
    original = meta.compute_loss

    def watched(learner: Any, task: Any, outer_loss: bool) -> Tensor:
        loss: Tensor = original(learner, task, outer_loss)
        order.append(numbers[_key(task)])
        losses.append(loss.item())
        return loss

    meta.compute_loss = watched
    arguments = {
        "meta_batch_size": _BATCH, "meta_lr": _LR, "num_epochs": 1, "do_eval": False, "mixed_precision": "no",
        "lr_scheduler": "LinearLR", "max_context_len": 1536, "logging_steps": 1000,
    }  # fmt: skip
    try:
        meta.train(
            learner, meta.mix_datasets([_Data(data)]), None, meta.TrainArgs(arguments),
            str(output), GenerationConfig(),
        )  # fmt: skip
    finally:
        meta.compute_loss = original
    means = [sum(losses[first : first + _BATCH]) / _BATCH for first in range(0, len(losses), _BATCH)]
    return means, order, output


@dataclass(frozen=True)
class _Data:
    data: list[dict[str, Any]]


def _answer_tokens(meta: Any, learner: Any, datum: dict[str, Any]) -> tuple[int, ...]:
    return _key(meta.tokenize_task(learner.tokenizer, datum, max_context_len=1536))


def _key(task: Any) -> tuple[int, ...]:
    """What tells a tokenised task from the others."""
    passages = [number for passage in task["train_data"] for number in passage["input_ids"].flatten().tolist()]
    return (*passages, *task["val_data"]["input_ids"].flatten().tolist())


def _our_training(
    lm: LanguageModel,
    start: MetaInit,
    batches: Sequence[Sequence[Task]],
    inner: InnerConfig,
    optimizer: OptimizerConfig,
) -> tuple[MetaInit, list[float]]:
    config = MetaTrainConfig(
        model=lm.config, tasks=(TaskSource(uri="unused"),), output="unused", inner=inner, optimizer=optimizer,
        strategy=StrategyConfig(name="graph"),
    )  # fmt: skip
    parameters = MetaParameters(lm.subspace, inner, 0, start)
    learner = MetaLearner(lm, PlainEngine(parameters, optimizer), config, lm.identity())
    state = meta_loop(learner, config).run(batches)
    return learner.product(state), state.losses
