from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from regrad.errors import TheoryError
from regrad.theory import LinearProblem, descend, one_step_layer, repeatable_layer, run_stack, tokens_of
from regrad.theory.objective import predict
from regrad.theory.random_problems import INTERFACES, random_problem
from tests.tools.refusals import refused

EXACT = 1e-12
"""Float64 has 16 digits; sums of some hundred products lose one or two of them. Relative to the prediction if it is
larger than 1, since a step that is too long makes it grow from layer to layer."""


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / max(1.0, float(expected.abs().max())))


def by_descent(problem: LinearProblem, step: float, steps: int) -> torch.Tensor:
    return predict(problem, *descend(problem, step, steps))


def by_formula(problem: LinearProblem, step: float, steps: int) -> torch.Tensor:
    """The steps written out in NumPy, with x1 and x2 as one vector."""
    x = np.concatenate([problem.x1.numpy(), problem.x2.numpy()], 1)
    weight = np.concatenate([problem.weight1.numpy(), problem.weight2.numpy()], 1)
    for _ in range(steps):
        weight = weight - step / len(x) * (x @ weight.T - problem.y.numpy()).T @ x
    return torch.from_numpy(weight @ np.concatenate([problem.query1.numpy(), problem.query2.numpy()]))


@pytest.mark.parametrize("problems", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("interface", INTERFACES)
def test_a_stack_is_as_many_gradient_steps_on_random_problems(interface: str, problems: int) -> None:
    for seed in range(problems):
        problem, step = random_problem(interface, seed)
        for depth in (1, 2, 5):
            assert difference(run_stack(problem, step, depth), by_formula(problem, step, depth)) <= EXACT, seed


@pytest.mark.parametrize("interface", INTERFACES)
def test_the_formula_is_what_autograd_descends(interface: str) -> None:
    for seed in range(50):
        problem, step = random_problem(interface, seed)
        for steps in (1, 2, 5):
            assert difference(by_descent(problem, step, steps), by_formula(problem, step, steps)) <= EXACT, seed


@pytest.mark.parametrize("interface", INTERFACES)
def test_the_papers_layer_adds_the_shift_of_one_step_and_leaves_the_features(interface: str) -> None:
    for seed in range(100):
        problem, step = random_problem(interface, seed)
        before = tokens_of(problem)
        after = one_step_layer(problem, step)(before)
        outputs = problem.y.shape[-1]
        assert torch.equal(after[:, :-outputs], before[:, :-outputs])
        assert difference(problem.start() + after[-1, -outputs:], by_descent(problem, step, 1)) <= EXACT


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_query_that_attends_to_itself_breaks_one_step_by_its_own_prediction(interface: str) -> None:
    for seed in range(100):
        problem, step = random_problem(interface, seed)
        tokens = tokens_of(problem)
        layer = one_step_layer(problem, step)
        outputs = problem.y.shape[-1]
        broken = (layer(tokens, query_attends_itself=True) - layer(tokens))[-1, -outputs:]
        square = problem.query1.square().sum() + problem.query2.square().sum()
        expected = -step / problem.examples * square * problem.start()
        assert difference(broken, expected) <= EXACT
        assert float(broken.abs().max()) > 1e-9  # not nothing: without it the line above would prove little


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_query_may_attend_to_itself_for_one_step_from_zero_but_not_for_two(interface: str) -> None:
    broken = []
    for seed in range(100):
        problem, step = random_problem(interface, seed)
        zero = replace(problem, weight1=torch.zeros_like(problem.weight1), weight2=torch.zeros_like(problem.weight2))
        layer = repeatable_layer(zero, step)
        alone = itself = tokens_of(zero)
        outputs = zero.y.shape[-1]
        alone, itself = layer(alone), layer(itself, query_attends_itself=True)
        assert difference(itself[-1, -outputs:], alone[-1, -outputs:]) <= EXACT
        alone, itself = layer(alone), layer(itself, query_attends_itself=True)
        broken.append(difference(itself[-1, -outputs:], alone[-1, -outputs:]))
    assert min(broken) > 1e-9


def test_the_papers_layer_stacked_as_it_is_takes_other_steps() -> None:
    differences = []
    for seed in range(100):
        problem, step = random_problem("projection", seed)
        layer = one_step_layer(problem, step)
        outputs = problem.y.shape[-1]
        found = problem.start() + layer(layer(tokens_of(problem)))[-1, -outputs:]
        differences.append(difference(found, by_descent(problem, step, 2)))
    assert min(differences) > 1e-9
    assert float(np.median(differences)) > 0.01


def test_problems_of_a_batch_are_solved_as_if_alone() -> None:
    alone = [random_problem("projection", 3)[0]]
    other = replace(alone[0], y=alone[0].y + 1, weight1=2 * alone[0].weight1)
    names = LinearProblem.__dataclass_fields__
    both = LinearProblem(*(torch.stack([getattr(alone[0], name), getattr(other, name)]) for name in names))
    for depth in (1, 3):
        expected = torch.stack([run_stack(alone[0], 0.1, depth), run_stack(other, 0.1, depth)])
        assert difference(run_stack(both, 0.1, depth), expected) <= EXACT
        assert difference(by_descent(both, 0.1, depth), expected) <= EXACT


def test_shapes_that_do_not_fit_are_refused() -> None:
    problem, _ = random_problem("projection", 0)
    with refused(TheoryError, "shapes"):
        replace(problem, x2=problem.x2[:, :-1])
    with refused(TheoryError, "no_examples"):
        replace(problem, x1=problem.x1[:0], x2=problem.x2[:0], y=problem.y[:0])


def test_a_stack_of_nothing_is_refused() -> None:
    problem, step = random_problem("projection", 0)
    with refused(TheoryError, "depth"):
        run_stack(problem, step, 0)
