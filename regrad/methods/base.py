"""What a method is: from the evidence for a question to a prompt and a temporary weight update.

Evaluation and server call the same `plan`. A method does not know about batches, servers or where atoms are kept (an
`AtomProvider` does); a generator does not know about methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self

from pydantic import Field
from torch import Tensor

from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import MethodError, NothingFound
from regrad.methods.demonstrations import DemonstrationSettings
from regrad.models.config import SubspaceConfig
from regrad.models.subspace import Update
from regrad.prompts import PromptFormat, StyleName
from regrad.retrieval.config import OneByOneConfig, RetrieverConfig
from regrad.settings import Location

if TYPE_CHECKING:  # transformers takes seconds to import, which processes without a model need not wait for
    from regrad.methods.regrad import BoundMetaInit
    from regrad.models.loading import LanguageModel

UpdateSource = str
"""Where the update comes from, in a word: `none`; `static`, one LoRA for all questions; of the passages their trained
`adapters`, their `gradients` from a bank, `gradients-now` or `adapting` to them; of demonstrations `adapting` to them;
what is `predicted` from passages or demonstrations; or what a new method calls its own."""


@dataclass(frozen=True)
class MethodInfo:
    """One row of the table of methods: are the passages in the prompt, and where does the weight update come from?"""

    name: str
    summary: str
    passages_in_prompt: bool
    update: UpdateSource = "none"
    style: StyleName = "default"

    @property
    def applies_gradients(self) -> bool:
        """Whether the update is made of the passages' gradients at a MetaInit."""
        return self.update in ("gradients", "gradients-now")

    @property
    def computes_gradients(self) -> bool:
        """Whether they are computed for the question, not fetched from a bank."""
        return self.update == "gradients-now"

    @property
    def retrieves(self) -> bool:
        """Whether the method uses passages at all."""
        return self.passages_in_prompt or self.update not in ("none", "static")


def open_question(text: str) -> Question:
    """An open question of which only the text is known."""
    return Question(id="", question=text, answers=())


@dataclass(frozen=True)
class Evidence:
    """What an answer may rest on: a question, its passages (best first) with their retrieval scores if there are any,
    and solved questions to show before it.

    `turns` (role, content) precede the question; a `raw` question is a prompt that the model gets as it is; `gamma`
    scales the update, in addition to the method's own settings.
    """

    question: Question
    passages: tuple[Passage, ...] = ()
    scores: tuple[float, ...] = ()
    demonstrations: tuple[Question, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    raw: bool = False
    gamma: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """What goes into the generator; `passages` are those that it shows, best first. `virtual` are ids of virtual tokens
    that it is read behind (see `regrad.models.virtual_tokens`): they have no text.
    """

    evidence: Evidence
    passages: tuple[Passage, ...] = ()
    style: StyleName = "default"
    virtual: tuple[int, ...] = ()

    def text(self, prompts: PromptFormat) -> str:
        """The prompt as these templates write it, its passages in their order."""
        evidence = self.evidence
        shown = prompts.ordered(self.passages)
        if evidence.raw:
            return prompts.context_text(shown) + evidence.question.question
        asked = prompts.prompt_for(evidence.question, shown, self.style, evidence.demonstrations)
        return prompts.conversation(evidence.turns) + asked

    def shortened(self, passages: int) -> Prompt:
        """The same with the best passages only."""
        return replace(self, passages=self.passages[:passages])


@dataclass(frozen=True)
class PassageUse:
    """How a passage was used for an answer: the tier of its atom, or why it has none.

    `contribution` depends on what was asked for: of `leave_one_out` the natural log of how much more probable the
    answer is with the passage's gradient than without it (of passages that are read one by one, with the passage than
    without it), of `norms` the length of its step gamma * alpha * gradient.
    """

    id: str
    tier: Tier = Tier.MISSING
    problem: str = ""
    contribution: float | None = None
    deleted: bool = False

    @property
    def missing(self) -> bool:
        """Whether the passage has no atom."""
        return self.tier is Tier.MISSING


@dataclass(frozen=True)
class Note:
    """A deviation from what was asked for: by which policy, why, and for which passages."""

    policy: str
    reason: str
    passage_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.policy}: {self.reason}"


NOTHING_FOUND = Note("no-passages", "no passage was found")
"""That a method which looks at passages had none, so that the base model answered."""


class BankState(Enum):
    """Whether a bank was read, could not be read, or was not asked, as the method needs none."""

    READ = "read"
    UNREAD = "unread"
    NOT_ASKED = "not asked"


@dataclass(frozen=True)
class Atoms:
    """The atoms of one question's passages: how each passage is used, in order, and the vectors of those with a tier.

    `total` [P] is their sum in float32, or None if there are none; `parts` [K, P] are the single ones, if they were
    asked for. `bytes` is their size where they are kept; `bank` says whether a bank was read for them.
    """

    uses: tuple[PassageUse, ...]
    total: Tensor | None = None
    parts: Tensor | None = None
    bytes: int = 0
    bank: BankState = BankState.NOT_ASKED

    @property
    def knows_deletions(self) -> bool:
        """Whether it is known which of the passages were deleted from the bank."""
        # Only then may a missing atom be computed: computing a deleted one would bring it back.
        return self.bank is not BankState.UNREAD

    @property
    def missing(self) -> list[int]:
        """The positions of the passages without an atom."""
        return [place for place, use in enumerate(self.uses) if use.missing]


class BankNeed(Enum):
    """What a method needs of a server's bank for a question."""

    NOTHING = "nothing"
    DELETIONS = "deletions"
    """Only what was deleted from it, which must not be computed again."""
    SUM = "sum"
    PARTS = "parts"
    """The sum, and the atoms one by one."""


Contributions = Literal["leave_one_out", "norms"]
"""How each passage's part in an answer is measured: see `PassageUse.contribution`."""


class AtomProvider(Protocol):
    """Where the atoms of passages come from: a bank, a server that has summed them, or nowhere (to be computed)."""

    def find(self, evidences: Sequence[Evidence], parts: bool) -> list[Atoms]:
        """The atoms of each question's passages; with `parts` also the single ones."""


class NoAtoms:
    """No atoms are kept: for methods that need none, and for those that compute all of them."""

    def find(self, evidences: Sequence[Evidence], parts: bool) -> list[Atoms]:
        """See `AtomProvider`."""
        return [Atoms(tuple(PassageUse(passage.id) for passage in item.passages)) for item in evidences]


@dataclass(frozen=True)
class Plan:
    """How a question is to be answered: a prompt, the updates to apply together, and notes of any deviations.

    The updates are vectors in float32 on the CPU; without any the base model answers. `uses` says how each passage is
    used; `parts` [K, P] are the atoms of those with a tier, if they are known one by one; `bytes_fetched` is the atoms'
    size in the bank, wherever they were found.
    """

    prompt: Prompt
    updates: tuple[Update, ...] = ()
    notes: tuple[Note, ...] = ()
    uses: tuple[PassageUse, ...] = ()
    parts: Tensor | None = None
    bytes_fetched: int = 0


class Method(ABC):
    """A method opened on a model. `plan` may run the model: not beside anything else that does."""

    def __init__(self, settings: MethodSettings) -> None:
        self._info = settings.info
        self._style: StyleName = settings.prompt_style or settings.info.style

    @abstractmethod
    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """How each of these questions is to be answered, in order."""

    def open_atoms(self) -> AtomProvider:
        """The provider that the method's own settings name."""
        return NoAtoms()

    def runs_model(self, atoms: Atoms) -> bool:
        """Whether `plan` will run the model for a question with these atoms."""
        return False

    @property
    def needs_passages(self) -> bool:
        """Whether the method refuses a question for which no passage was found; else the base model answers it."""
        return False

    def answer_plans(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """As `plan`, which is what evaluation and server call: a question without any passage is noted, or refused.

        Raises `NothingFound` if the method needs passages, and what `plan` raises.
        """
        alone = [self._info.retrieves and not evidence.passages for evidence in evidences]
        if self.needs_passages and any(alone):
            question = evidences[alone.index(True)].question
            raise NothingFound(
                f"no passage was found for the question {question.question!r:.80}, and method {self._info.name} "
                "requires passages (on_missing: fail); rephrase the question, or set another on_missing",
                method=self._info.name,
                question_id=question.id,
            )
        pairs = zip(self.plan(evidences, atoms), alone, strict=True)
        return [replace(p, notes=(*p.notes, NOTHING_FOUND)) if bare else p for p, bare in pairs]

    def contributions(
        self, how: Contributions, plan: Plan, prompt: str, answer: str, ended: bool
    ) -> Sequence[float] | None:
        """The part in the answer of each passage that has an atom; None if the method does not tell them apart.

        If the answer `ended` with the model's stop string, that counts as part of it. May run the model.
        """
        return None

    def prompt(self, evidence: Evidence, uses: Sequence[PassageUse] = (), by_rag: bool = False) -> Prompt:
        """The method's prompt, or (`by_rag`) that of RAG."""
        # What was deleted from the bank is not shown either: an index that still has it must not bring it back.
        deleted = {use.id for use in uses if use.deleted}
        shown = tuple(passage for passage in evidence.passages if passage.id not in deleted)
        return Prompt(evidence, shown if by_rag or self._info.passages_in_prompt else (), self._style)


@dataclass(frozen=True)
class Artefacts:
    """Where the files that a method needs are; an evaluation's cells are computed again if any of them changes.

    `others` are directories of a method's own making, by name; all their files count.
    """

    meta_init: str | None = None
    bank: str | None = None
    bank_version: int | None = None
    adapter: str | None = None
    others: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PassageCosts:
    """What it takes to prepare and to keep one passage for a method; None where that is not known."""

    preparation_ms: float | None = None
    storage_bytes: float | None = None


class MethodSettings(DemonstrationSettings):
    """Settings that every method has. Each family of methods has its own class, in its own module.

    `METHODS` are the family's rows of the table.
    """

    METHODS: ClassVar[tuple[MethodInfo, ...]] = ()
    READS_DEMONSTRATIONS: ClassVar[bool] = False
    """Whether demonstrations count with their passages, which no prompt shows."""
    FOLLOWS_RELEASE: ClassVar[bool] = False
    """Whether a server's releases name MetaInit and bank: then its settings of the method do not, and it is opened by
    `open_at` for each release. Any other method is opened once."""

    name: str = Field(min_length=1, description="the label in tables")
    method: str = Field("", description="one of regrad.methods.registry.METHODS; empty: the same as the name")
    prompt_style: StyleName | None = Field(None, description="null: the method's own")
    index: Location | None = Field(
        None, description="evaluation: its own index in place of the set's, to compare retrievers in one table"
    )
    retrieval: RetrieverConfig | None = Field(None, description="how its own index is searched; null: as the set's")
    one_by_one: OneByOneConfig | None = Field(
        None, description="answer with each passage alone and choose by p(answer); null: all together"
    )

    @property
    def kind(self) -> str:
        """The method's name."""
        return self.method or self.name

    @property
    def info(self) -> MethodInfo:
        """The method's row of the table."""
        return next(info for info in self.METHODS if info.name == self.kind)

    @property
    def artefacts(self) -> Artefacts:
        """Where the files that it needs are."""
        return Artefacts()

    def costs(self) -> PassageCosts:
        """What its artefacts are known to have cost for one passage, from cards and manifests."""
        return PassageCosts()

    @property
    def leaves_out(self) -> bool:
        """Whether questions are answered without the atoms that the method's bank lacks."""
        return False

    def needed(self, setting: str, described: str) -> str:
        """Where a setting's artefact is; raises `MethodError`, which describes it, if the settings do not say."""
        place: str | None = getattr(self, setting)
        if place is None:
            raise MethodError(
                f"method {self.kind} ({self.name}) needs '{setting}', {described}, but none is given",
                code="setting_missing",
                setting=setting,
            )
        return place

    def bank_need(self, parts: bool) -> BankNeed:
        """What the method needs of a server's bank; `parts`: the passages' contributions are asked for."""
        return BankNeed.NOTHING

    def seeded(self, seed: int) -> Self:
        """The settings for one of several seeds; the same for all unless the method draws something."""
        return self

    def check(self) -> None:
        """Raise `MethodError` (or what reading a card or manifest raises) if the method lacks what it needs.

        Reads cards and manifests only: a few KB.
        """

    def check_fits(self, target: SubspaceConfig) -> None:
        """Raise `MetaInitError` if an artefact that has to be in the model's subspace has another rank or scale."""

    def check_covers(self, passages: Sequence[Passage]) -> None:
        """Raise `MethodError` if a bank has no atom of any of these passages, so that all would be left out."""

    @abstractmethod
    def open(self, lm: LanguageModel) -> Method:
        """The method on this model; raises as `check` does, and if an artefact belongs to another model."""

    def open_at(self, bound: BoundMetaInit) -> Method:
        """The method at a release's MetaInit, which is loaded already; for those that follow releases."""
        raise NotImplementedError(f"{type(self).__name__} follows releases, and must have `open_at`")
