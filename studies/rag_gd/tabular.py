"""Tabular sets, four normalisations, and an embedding before the layer (arXiv 2605.26356, Sec. 4.3, App. E).

Sets that come inside scikit-learn, and two synthetic heavy-tailed ones, in place of the paper's four, which would have
to be downloaded. A task is ten rows with their targets and one row to predict; its documents are the rows of the corpus
(the training rows, always z-scored) nearest to it. Training rows are 80 %, and no test query is among them.

The paper does not say what embedding its reference has. Here both have an MLP of their own, from the same start and
trained alike: the one before a trained layer, the other before the constructed one, whose step, W_z and M are trained
with it. So two best of their kind are compared, in what they predict.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import stats
from sklearn import datasets
from torch import Tensor, nn

from regrad.theory import LinearProblem, dot_product_weights, run_stack
from studies.rag_gd.config import Normalisation, RagGdConfig, SetName
from studies.rag_gd.layers import TrainedLayer
from studies.rag_gd.measuring import Compared, compare, train
from studies.rag_gd.tasks import Tasks

_ROWS = 2000
_FEATURES = 8
_TRAINING_PART = 0.8
_SKLEARN = {"breast-cancer": (datasets.load_breast_cancer, 13), "wine": (datasets.load_wine, 12)}
"""The set and the column that is predicted from the first others: the standard error of a nucleus's area, proline."""


def load_table(name: SetName, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [rows, features] and targets [rows]; the synthetic sets are the same for a seed."""
    if name == "diabetes":
        found = datasets.load_diabetes(scaled=False)
        return found.data, found.target
    if name in _SKLEARN:
        load, column = _SKLEARN[name]
        data = load().data
        return np.delete(data, column, 1)[:, :10], data[:, column]
    random = np.random.default_rng(seed)
    shape = (_ROWS, _FEATURES)
    features = random.standard_t(2, shape) if name == "student-t" else random.lognormal(0, 1, shape)
    weight = random.standard_normal(_FEATURES)
    return features, features @ weight + features[:, 0] * features[:, 1] + random.standard_normal(_ROWS)


def normalise(training: np.ndarray, rows: np.ndarray, kind: Normalisation) -> np.ndarray:
    """The rows by what the training rows say: z-score, to [0, 1] by the extremes, to [-1, 1] by rank, tanh of z."""
    if kind == "min-max":
        low, high = training.min(0), training.max(0)
        return np.asarray((rows - low) / np.maximum(high - low, 1e-12))
    if kind == "rank":
        below = [stats.percentileofscore(training[:, i], rows[:, i], "mean") for i in range(rows.shape[1])]
        return np.stack(below, 1) / 50 - 1
    scores = (rows - training.mean(0)) / np.maximum(training.std(0), 1e-12)
    return np.asarray(np.tanh(scores) if kind == "tanh" else scores)


class Table:
    """Rows of a set as tasks. Inputs are normalised; targets and the corpus are z-scored by the training rows."""

    def __init__(self, config: RagGdConfig, name: SetName, kind: Normalisation, seed: int) -> None:
        features, targets = load_table(name, seed)
        order = np.random.default_rng(seed).permutation(len(targets))
        self._cut = int(_TRAINING_PART * len(order))
        training = order[: self._cut]
        self._x = _tensor(normalise(features[training], features[order], kind))
        self._y = _tensor(normalise(targets[training, None], targets[order, None], "z-score"))
        scored = _tensor(normalise(features[training], features[order], "z-score"))
        distances = torch.cdist(scored, scored[: self._cut])
        distances.fill_diagonal_(torch.inf)  # a training row is not its own document
        nearest = distances.topk(config.tabular_documents, largest=False).indices
        project = torch.randn(scored.shape[1], config.size, generator=torch.Generator().manual_seed(seed))
        corpus = scored[: self._cut] @ project / scored.shape[1]
        self._documents = corpus[nearest]
        self._examples = config.examples
        self.features = self._x.shape[1]

    def draw(self, count: int, generator: torch.Generator, test: bool = False) -> Tasks:
        """`count` tasks; the context is always of training rows, the query of test rows if `test`."""
        context = torch.randint(0, self._cut, (count, self._examples), generator=generator)
        low, high = (self._cut, len(self._x)) if test else (0, self._cut)
        query = torch.randint(low, high, (count,), generator=generator)
        x, asked, nothing = self._x[context], self._x[query], torch.zeros(1, self.features)
        problem = LinearProblem(x, x, self._y[context], asked, asked, nothing, nothing)
        return Tasks(problem, self._y[query], self._documents[query])


class Embedded(nn.Module):
    """An MLP on every input, then `head` on the tasks of what it makes."""

    def __init__(self, features: int, hidden: int, size: int, head: nn.Module) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, size))
        self.head = head

    def forward(self, tasks: Tasks) -> Tensor:
        """The prediction [B, 1]."""
        x, query = self.mlp(tasks.problem.x1), self.mlp(tasks.problem.query1)
        nothing = x.new_zeros(1, x.shape[-1])
        problem = LinearProblem(x, x, tasks.problem.y, query, query, nothing, nothing)
        return self.head(replace(tasks, problem=problem))  # type: ignore[no-any-return]


class ConstructedLayer(nn.Module):
    """The constructed layer of the dot-product interface with step, W_z and M as parameters."""

    def __init__(self, config: RagGdConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(0.3))
        self.value = nn.Parameter(config.spread * torch.randn(1, config.size, generator=generator))
        self.match = nn.Parameter(config.spread * torch.randn(config.size, config.size, generator=generator))

    def forward(self, tasks: Tasks) -> Tensor:
        """The prediction [B, 1]."""
        assert tasks.documents is not None
        problem = tasks.problem
        start, made = dot_product_weights(problem.weight1, self.value, self.match, tasks.documents)
        # The step is a parameter here, and a layer's matrices take a number: a step of 1 on targets and starts, which
        # the shift is linear in, is the same, times the step.
        shifted = run_stack(replace(problem, weight1=start, weight2=made), 1.0, 1)
        before = replace(problem, weight1=start, weight2=made).start()
        return before + self.step * (shifted - before)


def measure_tabular(config: RagGdConfig, name: SetName, kind: Normalisation, seed: int) -> Compared:
    """Train both on the set and compare them on its test rows."""
    torch.manual_seed(seed)
    table = Table(config, name, kind, seed)
    generator = torch.Generator().manual_seed(seed)
    trained = Embedded(table.features, config.hidden, config.size, TrainedLayer(2 * config.size + 1, 1, generator))
    reference = Embedded(table.features, config.hidden, config.size, ConstructedLayer(config, generator))
    reference.mlp.load_state_dict(trained.mlp.state_dict())
    training = config.training
    for model in (trained, reference):
        draws = torch.Generator().manual_seed(seed)  # the same tasks for both

        def draw(draws: torch.Generator = draws) -> Tasks:
            return table.draw(training.batch_size, draws)

        train(model, draw, training.tabular_steps, training.learning_rate)
    return compare(trained, reference, table.draw(config.test_tasks, generator, test=True))


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
