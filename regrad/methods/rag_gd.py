"""RAG-GD (arXiv 2605.26356): demonstrations change how the model uses its passages, by an update and not in the prompt.

W0 is a LoRA on the query, key and value projections of every block, trained by `regrad finetune` on questions with
passages in the prompt; alone it is `rag-gd-base`. `tt-sgd` takes gradient steps from it on a question's demonstrations,
with a LoRA of the question's own, so nothing has to be reset. `rag-gd` predicts what the steps would give, by a network
of `regrad predictor`: one pass over the demonstrations, and none backwards.

`hypertuning` is the same with a network that was trained on answers, through the model, and not on steps.

Two controls that the paper lacks: `rag-gd-shuffled` gives each demonstration the answer of another one, and
`rag-gd-constant` adds the mean of the steps on all contexts of training, whatever the question.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from regrad.data.questions import Question
from regrad.errors import MethodError
from regrad.methods.base import (
    Artefacts,
    AtomProvider,
    Atoms,
    Evidence,
    Method,
    MethodInfo,
    MethodSettings,
    PassageUse,
    Plan,
    Prompt,
)
from regrad.methods.static_lora import needed_adapter
from regrad.models.subspace import Update
from regrad.settings import Location
from regrad.training.lora.lora_artifact import ADAPTER_CARD, StaticLora
from regrad.training.predictor.artifact import PREDICTOR_CARD, UpdatePredictor, added, check_belongs
from regrad.training.predictor.config import ContextConfig, StepsConfig, UpdateSpace
from regrad.training.predictor.contexts import Context, context_of, steps_on

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


class FromW0Settings(MethodSettings):
    """What the methods that start from W0 have in common."""

    READS_DEMONSTRATIONS: ClassVar[bool] = True

    adapter: Location | None = Field(
        None, description="W0, a LoRA of `regrad finetune` (objective questions-with-passages)"
    )
    demonstrations: int = Field(3, ge=0, le=1000, description="number of solved questions that the update is made of")
    in_prompt: bool = Field(False, description="show the demonstrations in the prompt, too, without their passages")

    @property
    def artefacts(self) -> Artefacts:
        """See `MethodSettings`."""
        return Artefacts(adapter=self.adapter)

    def check(self) -> None:
        """See `MethodSettings`."""
        ADAPTER_CARD.read(needed_adapter(self))


class TtSgdConfig(FromW0Settings):
    """tt-sgd: W0 alone is needed."""

    METHODS: ClassVar = (
        MethodInfo("tt-sgd", "trained on demonstrations for this question", passages_in_prompt=True, update="adapting"),
    )

    steps: StepsConfig = StepsConfig()
    k: int | None = Field(None, ge=1, description="maximum number of passages per demonstration; null: all of its own")
    max_tokens: int = Field(
        1536, ge=16, description="limit for a demonstration; its worst passages are dropped until it fits"
    )

    def open(self, lm: LanguageModel) -> Method:
        """See `MethodSettings`."""
        return TtSgd(self, lm)


class RagGdConstantConfig(FromW0Settings):
    """rag-gd-constant: W0 and a predictor, of which only the mean of its training's updates is used."""

    METHODS: ClassVar[tuple[MethodInfo, ...]] = (
        MethodInfo("rag-gd-constant", "RAG-GD's mean update (a control)", passages_in_prompt=True, update="predicted"),
    )

    predictor: Location | None = Field(None, description="a predictor of `regrad predictor`, trained on the same W0")
    demonstrations: int = Field(0, ge=0, le=1000, description="number of solved questions to show, with `in_prompt`")

    def needed_predictor(self) -> str:
        """Where the predictor is; raises `MethodError` if the settings do not say."""
        return self.needed("predictor", "of `regrad predictor`")

    @property
    def artefacts(self) -> Artefacts:
        """See `MethodSettings`."""
        return Artefacts(adapter=self.adapter, others={"predictor": self.predictor} if self.predictor else {})

    def check(self) -> None:
        """See `MethodSettings`; also whether the predictor was trained on this W0."""
        adapter = ADAPTER_CARD.read(needed_adapter(self))
        card = PREDICTOR_CARD.read(self.needed_predictor())
        check_belongs(card["base_identity"], card["adapter"], adapter["base_identity"], adapter["digest"])

    def open(self, lm: LanguageModel) -> Method:
        """See `MethodSettings`."""
        return RagGdConstant(self, lm)


class RagGdConfig(RagGdConstantConfig):
    """rag-gd, rag-gd-shuffled, hypertuning: W0, and a predictor that was trained on it."""

    METHODS: ClassVar = (
        MethodInfo("rag-gd", "an update predicted from demonstrations", passages_in_prompt=True, update="predicted"),
        MethodInfo(
            "hypertuning",
            "an update predicted from demonstrations, by a network trained on answers",
            passages_in_prompt=True,
            update="predicted",
        ),
        MethodInfo(
            "rag-gd-shuffled",
            "RAG-GD with the demonstrations' answers exchanged (a control)",
            passages_in_prompt=True,
            update="predicted",
        ),
    )

    demonstrations: int = Field(3, ge=0, le=1000, description="number of solved questions that the update is made of")

    def check(self) -> None:
        """See `MethodSettings`; also whether the predictor was trained for what the method's name says."""
        super().check()
        card = PREDICTOR_CARD.read(self.needed_predictor())
        expected = {"rag-gd": "steps", "hypertuning": "answers"}.get(self.kind)
        if expected is not None and card.get("objective", "steps") != expected:
            raise MethodError(
                f"{self.kind} takes a predictor of `regrad predictor` with objective: {expected}, but the one at "
                f"{self.predictor} was trained with another; train one, or use the method that it is for",
                code="predictor_of_another_objective",
                expected=expected,
                uri=self.needed_predictor(),
            )

    def check_demonstrations(self, chosen: Sequence[Question]) -> None:
        """See `DemonstrationSettings`: of those with one answer between them none can be exchanged."""
        if self.kind == "rag-gd-shuffled":
            exchanged(chosen)

    def open(self, lm: LanguageModel) -> Method:
        """See `MethodSettings`."""
        return RagGd(self, lm)


class FromW0(Method):
    """W0, changed by what the question's demonstrations say. W0 itself is never written."""

    def __init__(self, settings: FromW0Settings, lm: LanguageModel) -> None:
        super().__init__(settings)
        self._lm, self._shown = lm, settings.in_prompt
        self._adapter = StaticLora.load(needed_adapter(settings))
        self._adapter.check_base(lm)

    def runs_model(self, atoms: Atoms) -> bool:
        """See `Method`."""
        return True

    def prompt(self, evidence: Evidence, uses: Sequence[PassageUse] = (), by_rag: bool = False) -> Prompt:
        """See `Method`: the demonstrations are in the update, and in the prompt only if the settings say so."""
        return super().prompt(evidence if self._shown else replace(evidence, demonstrations=()), uses, by_rag)

    @abstractmethod
    def updates(self, contexts: Sequence[tuple[Question, ...]], gammas: Sequence[float]) -> list[Update]:
        """W0 after each of these contexts; gamma scales what a context adds to it."""

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """See `Method`. Raises `MethodError` for a question without demonstrations, or with one that is too long."""
        # Those that have the same demonstrations (by `first` all of a set): each context is worked on once.
        asked = [(evidence.demonstrations, evidence.gamma) for evidence in evidences]
        different = list(dict.fromkeys(asked))
        found = self.updates([context for context, _ in different], [gamma for _, gamma in different])
        by_context = dict(zip(different, found, strict=True))
        return [Plan(self.prompt(one), (by_context[key],)) for one, key in zip(evidences, asked, strict=True)]

    def _moved(self, update_P: Tensor, space: UpdateSpace, gamma: float) -> Update:
        return Update(*added(self._adapter, update_P, space, gamma))


class TtSgd(FromW0):
    """K steps of plain SGD on the demonstrations."""

    def __init__(self, settings: TtSgdConfig, lm: LanguageModel) -> None:
        super().__init__(settings, lm)
        self._steps = settings.steps
        self._context = ContextConfig(k=settings.k, max_tokens=settings.max_tokens)

    def updates(self, contexts: Sequence[tuple[Question, ...]], gammas: Sequence[float]) -> list[Update]:
        """See `FromW0`. Raises `MethodError` if a gradient is not finite."""
        examples = [context_of(self._lm, one, self._context) for one in contexts]
        start_P, found = self._adapter.values.to(self._lm.device), []
        for context, gamma in zip(examples, gammas, strict=True):
            end_P = steps_on(self._lm, context, self._adapter.subspace, start_P, self._steps)
            if end_P is None:
                raise MethodError(
                    f"a gradient on the demonstrations is not finite within {self._steps.steps} steps; lower steps.lr",
                    code="steps_not_finite",
                    steps=self._steps.steps,
                )
            # lerp at 1 gives where the steps ended to the last bit; a sum of W0 and a difference would not.
            found.append(Update(self._adapter.subspace, torch.lerp(start_P, end_P, gamma).cpu()))
        return found


class RagGdConstant(FromW0):
    """The mean of the steps on the contexts of the predictor's training."""

    def __init__(self, settings: RagGdConstantConfig, lm: LanguageModel) -> None:
        super().__init__(settings, lm)
        self._predictor = UpdatePredictor.load(settings.needed_predictor())
        self._predictor.check_belongs(lm, self._adapter)

    def updates(self, contexts: Sequence[tuple[Question, ...]], gammas: Sequence[float]) -> list[Update]:
        """See `FromW0`: the same for all contexts."""
        return [self._moved(self._predictor.constant, "factors", gamma) for gamma in gammas]


class RagGd(RagGdConstant):
    """What the predictor says of the demonstrations."""

    def __init__(self, settings: RagGdConfig, lm: LanguageModel) -> None:
        super().__init__(settings, lm)
        self._shuffled = settings.kind == "rag-gd-shuffled"

    def updates(self, contexts: Sequence[tuple[Question, ...]], gammas: Sequence[float]) -> list[Update]:
        """See `FromW0`. Raises `ModelError` if a state is not finite."""
        seen = [exchanged(one) for one in contexts] if self._shuffled else contexts
        examples: list[Context] = [context_of(self._lm, one, self._predictor.context) for one in seen]
        found_UP = self._predictor.predict(self._lm, self._adapter, examples)
        return [self._moved(one, self._predictor.space, gamma) for one, gamma in zip(found_UP, gammas, strict=True)]


def exchanged(demonstrations: Sequence[Question]) -> tuple[Question, ...]:
    """Each with the answers of the next one, and the last with those of the first.

    Raises `MethodError` if there are fewer than two answers to exchange.
    """
    if demonstrations and len({one.answers for one in demonstrations}) < 2:
        raise MethodError(
            f"rag-gd-shuffled exchanges the answers of demonstrations, but the {len(demonstrations)} given have one "
            "answer between them; give at least two with different answers",
            code="nothing_to_exchange",
            demonstrations=len(demonstrations),
        )
    answers = [one.answers for one in demonstrations]
    others = answers[1:] + answers[:1]
    return tuple(replace(one, answers=other) for one, other in zip(demonstrations, others, strict=True))
