"""The expectation step over ordered lists: drawn by the selector, weighed by the generator, both as an iteration began.

What an iteration draws for a question follows from seed, iteration and question, so that it need not be drawn before
the iteration's steps: it is when the question first comes up, by the weights that were kept, and once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regrad.data.questions import Question
from regrad.training.retriever.candidates import Union
from regrad.training.retriever.chains import NO_STATE
from regrad.training.retriever.config import DroConfig
from regrad.training.retriever.finder import Finder
from regrad.training.retriever.likelihood import Asked, Likelihood
from regrad.training.retriever.objectives import Lists, draw_orderings, ordering_log_probability

_PREFIX = "expectation."


@dataclass(frozen=True)
class _Drawn:
    """A question's candidates [U], lists of places among them [m, L], and for each list the answer's log-likelihood and
    the list's own log-probability [m]."""

    rows: Tensor
    orderings: Tensor
    likelihood: Tensor
    log_drawn: Tensor


class Expectation:
    """Lists for the questions of each step. `changed` is to be called when the weights of `module` have been."""

    def __init__(
        self,
        config: DroConfig,
        seed: int,
        finder: Finder,
        likelihood: Likelihood,
        module: nn.Module,
        changed: Callable[[], None],
    ) -> None:
        self._config, self._seed, self._finder, self._likelihood = config, seed, finder, likelihood
        self._module, self._changed = module, changed
        self._began = NO_STATE
        self._weights: dict[str, Tensor] = {}
        self._drawn: dict[int, _Drawn] = {}

    def of(self, numbered: Sequence[tuple[int, Question]], step: int) -> tuple[Union, Lists]:
        """The candidates of these questions at this step, and their lists."""
        began = step - step % self._config.iteration
        if began != self._began:
            self._began, self._drawn = began, {}
            self._weights = self._now() if self._config.iteration > 1 else {}
        missing = [item for item in dict(numbered).items() if item[0] not in self._drawn]
        if missing:
            with torch.no_grad(), self._as_it_was(step):
                self._draw(missing)
        drawn = [self._drawn[number] for number, _ in numbered]
        return _stacked(drawn)

    def forget(self) -> None:
        """To be called when other vectors are searched: a resumed run can draw from these alone."""
        self._drawn = {}

    def asked(self, question: Question, rows_U: Tensor, ordering_L: Tensor) -> Asked:
        """The question with the passages of one list."""
        rows = [int(rows_U[place]) for place in ordering_L.tolist() if place != NO_STATE]
        passages = self._finder.passages(sorted(set(rows)))
        return question, tuple(passages[row] for row in rows)

    def tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint needs: the weights of the iteration that it is in."""
        kept = {f"{_PREFIX}{name}": value.clone() for name, value in self._weights.items()}
        return {f"{_PREFIX}began": torch.tensor(self._began), **kept}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; what was drawn is drawn again when it is asked for."""
        found = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
        self._began, self._drawn = int(found.pop("began")), {}
        self._weights = found

    def _draw(self, missing: Sequence[tuple[int, Question]]) -> None:
        none_1 = torch.full((1,), NO_STATE)
        asked: list[Asked] = []
        drawn: list[tuple[Tensor, Tensor, Tensor]] = []
        for number, question in missing:
            # Each question by itself: beside others its scores round otherwise, and a resumed run meets it with others.
            found = self._finder.find([question], none_1)
            key = hashlib.sha256(f"{self._seed}/{self._began}/{number}".encode()).digest()
            draws = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
            scored = (found.prior, found.union.by_prior)
            orderings_1mL = draw_orderings(*scored, self._config.samples, self._config.shown, draws)
            rows_U = found.union.rows[0].masked_fill(~found.union.by_prior[0], NO_STATE)
            drawn.append((rows_U, orderings_1mL[0], ordering_log_probability(*scored, orderings_1mL)[0]))
            asked += [self.asked(question, found.union.rows[0], ordering_L) for ordering_L in orderings_1mL[0]]
        likelihood_Bm = self._likelihood.of(asked).reshape(len(missing), -1)
        for (number, _), (rows_U, orderings_mL, log_drawn_m), likelihood_m in zip(
            missing, drawn, likelihood_Bm, strict=True
        ):
            self._drawn[number] = _Drawn(rows_U, orderings_mL, likelihood_m, log_drawn_m)

    def _now(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self._module.state_dict().items()}

    @contextmanager
    def _as_it_was(self, step: int) -> Iterator[None]:
        """Inside the block all that is trained is as the iteration began."""
        if step == self._began or not self._weights:
            yield
            return
        now = self._now()
        try:
            self._module.load_state_dict(self._weights)
            self._changed()
            yield
        finally:
            self._module.load_state_dict(now)
            self._changed()


def _stacked(drawn: Sequence[_Drawn]) -> tuple[Union, Lists]:
    most = max(len(one.rows) for one in drawn)
    rows_BU = torch.stack([_padded(one.rows, most) for one in drawn])
    longest = max(one.orderings.shape[1] for one in drawn)
    orderings_BmL = torch.stack([_padded(one.orderings, longest) for one in drawn])
    present_BU = rows_BU != NO_STATE
    none_B = torch.full((len(drawn),), NO_STATE, device=rows_BU.device)
    union = Union(rows_BU.clamp_min(0), present_BU, present_BU, present_BU, none_B)
    likelihood_Bm = torch.stack([one.likelihood for one in drawn]).to(rows_BU.device)
    return union, Lists(orderings_BmL, likelihood_Bm, torch.stack([one.log_drawn for one in drawn]))


def _padded(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]), value=NO_STATE)
