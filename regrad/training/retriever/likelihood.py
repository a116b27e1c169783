"""How likely an answer is with one passage, or an ordered list: log p(y|x, h), by the same method that will answer.

A method plans a prompt and updates for a question with these passages alone, as it does in an evaluation, and the
generator reads the answer behind it. `rag` puts the passage into the prompt; `regrad` applies its gradient.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import TrainingError
from regrad.gradients.extractor import Extracted
from regrad.methods.base import AtomProvider, Atoms, Evidence, Method, MethodSettings, PassageUse, Plan
from regrad.methods.reading import LikelihoodReader
from regrad.methods.regrad import BoundMetaInit, ReGrad
from regrad.models.loading import LanguageModel

_PLANNED = 64  # pairs whose updates are in memory at once
_ATOM_BYTES = 1 << 28

Asked = tuple[Question, tuple[Passage, ...]]
"""A question and the passages, in order, with which its first answer is read."""


class Likelihood(Protocol):
    """Log-likelihoods of answers, each with its passages."""

    def of(self, asked: Sequence[Asked]) -> Tensor:
        """log p(first answer | question, passages) [N] float32, on the CPU."""


class MethodLikelihood:
    """The likelihood under one method; `per_token` divides it by the answer's tokens, the end of the answer included.

    Raises what opening the method raises.
    """

    def __init__(self, lm: LanguageModel, settings: MethodSettings, per_token: bool, batch_tokens: int) -> None:
        self.lm, self.settings = lm, settings
        self.reader, self.reduction = LikelihoodReader(lm, batch_tokens), "mean" if per_token else "sum"
        self.use(settings.open(lm))

    def use(self, method: Method) -> None:
        """Plan by this method from now on, which is that of the settings at another MetaInit."""
        self._method = method
        self._atoms: AtomProvider = method.open_atoms()
        if isinstance(method, ReGrad) and self.settings.info.computes_gradients:
            self._atoms = ComputedAtoms(method.bound)

    def of(self, asked: Sequence[Asked]) -> Tensor:
        """See `Likelihood`. Raises `TrainingError` if one is not finite, and `PromptTooLong`."""
        parts = [self._of(some) for some in parts_of(asked)]
        return torch.cat(parts) if parts else torch.zeros(0)

    def plans(self, asked: Sequence[Asked]) -> list[Plan]:
        """How the method would answer, in order."""
        evidences = [
            Evidence(question, passages, (1.0,) * len(passages), turns=question.turns) for question, passages in asked
        ]
        return self._method.answer_plans(evidences, self._atoms)

    def read(self, plans: Sequence[Plan], answers: Sequence[str]) -> Tensor:
        """The log-likelihoods of answers under the plans [N], on the CPU."""
        return self.reader.log_likelihoods(plans, answers, self.reduction)

    def _of(self, asked: Sequence[Asked]) -> Tensor:
        found_N = self.read(self.plans(asked), [question.answers[0] for question, _ in asked])
        if not bool(torch.isfinite(found_N).all()):
            question, passages = asked[int(torch.isfinite(found_N).logical_not().nonzero()[0])]
            passage_id = passages[0].id if passages else ""
            raise TrainingError(
                f"the answer to {question.question!r:.80} has no finite likelihood with passage {passage_id!r:.80}; "
                "load the model in float32, or lower the method's gamma",
                code="likelihood_not_finite",
                question=question.question,
                passage_id=passage_id,
            )
        return found_N


def parts_of(asked: Sequence[Asked]) -> Iterator[Sequence[Asked]]:
    """As many at a time as have their updates in memory together."""
    return (asked[start : start + _PLANNED] for start in range(0, len(asked), _PLANNED))


@dataclass
class ComputedAtoms:
    """Atoms computed when they are first asked for, many passages at once; the latest are kept, up to 256 MB."""

    bound: BoundMetaInit

    def __post_init__(self) -> None:
        self._kept: OrderedDict[str, Extracted] = OrderedDict()

    def find(self, evidences: Sequence[Evidence], parts: bool) -> list[Atoms]:
        """See `AtomProvider`."""
        asked = {passage.id: passage for evidence in evidences for passage in evidence.passages}
        missing = [passage for name, passage in asked.items() if name not in self._kept]
        self._kept.update((item.passage.id, item) for item in self.bound.compute(missing))
        found = [self._atoms(evidence, parts) for evidence in evidences]
        self._forget()
        return found

    def _atoms(self, evidence: Evidence, parts: bool) -> Atoms:
        items = [self._kept[passage.id] for passage in evidence.passages]
        for item in items:
            self._kept.move_to_end(item.passage.id)
        uses = [PassageUse(i.passage.id, Tier.MISSING if i.atom is None else Tier.ONLINE, i.problem) for i in items]
        atoms = [item.atom for item in items if item.atom is not None]
        if not atoms:
            return Atoms(tuple(uses))
        parts_KP = torch.stack(atoms)
        return Atoms(tuple(uses), parts_KP.sum(0), parts_KP if parts else None)

    def _forget(self) -> None:
        sizes = [0 if item.atom is None else 4 * item.atom.numel() for item in self._kept.values()]
        kept = sum(sizes)
        for size in sizes:
            if kept <= _ATOM_BYTES:
                break
            self._kept.popitem(last=False)
            kept -= size
