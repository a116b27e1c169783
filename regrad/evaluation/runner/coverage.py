"""Whether a method's bank is of the passages that a set's questions get, before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regrad.config import EvalSetConfig, MethodConfig
from regrad.corpus import Passage
from regrad.evaluation.questions import Question
from regrad.evaluation.runner.passages import PassageFinder
from regrad.methods import check_bank_covers, get_method

_QUESTIONS = 64


class Coverage:
    """Looks up the passages of each set's first questions in the banks; finds those of a set only once."""

    def __init__(self, questions: Mapping[str, Sequence[Question]], k: int) -> None:
        self._questions, self._k = questions, k
        self._found: dict[str, list[Passage]] = {}
        self._checked: set[tuple[str, str | None, int | None]] = set()

    def check(self, method: MethodConfig, one: EvalSetConfig, seed: int) -> None:
        """Raise `MethodError` if the method's bank has the atom of none of them; nothing for a method without one."""
        place = (one.name, method.bank, method.bank_version)
        if place in self._checked or not _leaves_out(method):
            return
        if one.name not in self._found:
            self._found[one.name] = self._first(one, seed)
        check_bank_covers(method, self._found[one.name])
        self._checked.add(place)

    def _first(self, one: EvalSetConfig, seed: int) -> list[Passage]:
        finder = PassageFinder(one.passages, seed)
        first = self._questions[one.name][:_QUESTIONS]
        return [passage for question in first for passage in finder.find(question, self._k).passages]


def _leaves_out(method: MethodConfig) -> bool:
    """Whether the method goes on without what its bank has not."""
    uses_bank = get_method(method.kind).update in ("gradients", "adapters")
    return uses_bank and method.bank is not None and method.on_missing == "fewer"
