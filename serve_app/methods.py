"""The methods that a server offers: what each needs of the other deployments, and the request that it makes.

The generator makes a request by the same plan of a method as an evaluation does: what retriever and bank loader gave
becomes evidence and atoms, and the method decides what follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.questions import Question
from regrad.errors import ConfigError, FingerprintMismatch
from regrad.inference.rows import DecodingRequest, Finished
from regrad.methods.base import (
    AtomProvider,
    Atoms,
    Evidence,
    Method,
    MethodInfo,
    MethodSettings,
    NoAtoms,
    PassageUse,
    Plan,
)
from regrad.methods.demonstrations import DemonstrationPool, repeats
from regrad.methods.one_by_one import ReplyReader, best_of, different, log_prior, together, without_each
from regrad.methods.policies import PromptFitter
from regrad.methods.reading import AnswerBatch
from regrad.methods.regrad import BoundMetaInit
from regrad.retrieval.config import OneByOneConfig
from serve_app.config import ServeConfig
from serve_app.messages import Ask, GradientSum, Release, Retrieved, RoutedAsk

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


@dataclass(frozen=True)
class Offer:
    """One method with its settings."""

    settings: MethodSettings

    @property
    def info(self) -> MethodInfo:
        """What it does, under the name that it is offered by."""
        return replace(self.settings.info, name=self.settings.name)

    def routed(self, ask: Ask, release: Release) -> RoutedAsk:
        """The question with what this method needs of the other deployments."""
        apart = ask.contributions is not None or self.settings.one_by_one is not None
        need = self.settings.bank_need(parts=apart)
        return RoutedAsk(ask, release, self.info.retrieves, need)


def offers_of(config: ServeConfig) -> dict[str, Offer]:
    """Every method of the settings; the server's `on_missing` applies to those that do not set it."""
    found = {}
    for settings in config.methods:
        inherits = settings.FOLLOWS_RELEASE and "on_missing" in type(settings).model_fields
        if inherits and "on_missing" not in settings.model_fields_set:
            settings = settings.model_copy(update={"on_missing": config.on_missing})
        found[settings.name] = Offer(settings)
    return found


def check_offers(config: ServeConfig) -> None:
    """Raise what is wrong with the artefacts of methods that have their own, or with the solved questions."""
    demonstrations_of(config)
    for settings in config.methods:
        if not settings.FOLLOWS_RELEASE:
            settings.check()


def demonstrations_of(config: ServeConfig) -> Sequence[Question]:
    """The solved questions that methods choose from; raises `ConfigError` if the file has fewer than one asks for."""
    wanted = max((settings.demonstrations for settings in config.methods), default=0)
    if not wanted or config.demonstrations is None:
        return ()
    limit = None if searches_demonstrations(config) else wanted
    found = read_questions(QuestionSetConfig(name="demonstrations", path=config.demonstrations, limit=limit))
    # What is nearest to a question must not be the question: any of the file may be asked.
    itself = repeats([one.normalised for one in found])
    for settings in config.methods:
        there = len(found) - (itself if settings.searches_demonstrations else 0)
        if there < settings.demonstrations:
            raise ConfigError(
                f"method {settings.name!r} asks for {settings.demonstrations} demonstrations, but "
                f"{config.demonstrations} has {there}{' beside one that is asked' if there < len(found) else ''}; add "
                "some to it, or ask for fewer",
                code="too_few_demonstrations",
                path=config.demonstrations,
                expected=settings.demonstrations,
                found=there,
            )
    return found


def searches_demonstrations(config: ServeConfig) -> bool:
    """Whether any method's demonstrations are those nearest to the question."""
    return any(settings.searches_demonstrations for settings in config.methods)


class FoundAtoms:
    """The atoms of one question, where they are known already."""

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms

    def find(self, evidences: Sequence[Evidence], parts: bool) -> list[Atoms]:
        """See `AtomProvider`."""
        return [self.atoms for _ in evidences]


class LoadedAtoms(FoundAtoms):
    """The atoms of one question as the bank loader summed them. Raises `FingerprintMismatch` for another MetaInit's."""

    def __init__(self, gradients: GradientSum, fingerprint: str) -> None:
        if gradients.fingerprint != fingerprint:
            raise FingerprintMismatch(gradients.fingerprint, fingerprint)
        found_any = any(not use.missing for use in gradients.uses)
        total = gradients.total.float() if found_any else None
        super().__init__(Atoms(gradients.uses, total, gradients.parts, bank=gradients.bank))


@dataclass(frozen=True)
class Opened:
    """An offered method on the generator's model, and the atoms that its own settings name."""

    offer: Offer
    method: Method
    atoms: AtomProvider

    @property
    def waits(self) -> bool:
        """Whether making a plan reads files, as of a bank of adapters."""
        return self.offer.settings.artefacts.bank is not None


def open_own(offers: Mapping[str, Offer], lm: LanguageModel) -> dict[str, Opened]:
    """The methods that need nothing of a release; raises what opening them raises."""
    opened = {}
    for name, offer in offers.items():
        if not offer.settings.FOLLOWS_RELEASE:
            method = offer.settings.open(lm)
            opened[name] = Opened(offer, method, method.open_atoms())
    return opened


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to be decoded, and the plan that it was made of."""

    request: DecodingRequest
    plan: Plan


def _question(ask: Ask) -> Question:
    turns = tuple((turn.role, turn.content) for turn in ask.turns)
    return Question("", ask.question, (), ask.kind, ask.choices, turns=turns)


class RequestBuilder:
    """Makes the requests of one release: the methods that need nothing of it, and the others at its MetaInit."""

    def __init__(
        self,
        bound: BoundMetaInit,
        fitter: PromptFitter,
        offers: Mapping[str, Offer],
        own: Mapping[str, Opened],
        pool: DemonstrationPool,
        reader: ReplyReader,
    ) -> None:
        self.fingerprint = bound.fingerprint
        self._reader = reader
        self._fitter = fitter
        self._pool = pool
        self._opened = dict(own)
        for name, offer in offers.items():
            if offer.settings.FOLLOWS_RELEASE:
                self._opened[name] = Opened(offer, offer.settings.open_at(bound), NoAtoms())

    def opened(self, ask: Ask) -> Opened:
        """The request's method."""
        return self._opened[ask.method]

    def read_atoms(self, ask: Ask, retrieved: Retrieved | None) -> FoundAtoms:
        """What the bank of the method's own has of the passages, for `prepare`. It waits for files: not on a loop."""
        passages = tuple(hit.passage for hit in retrieved.hits) if retrieved else ()
        if not passages:
            return FoundAtoms(Atoms(()))
        (found,) = self.opened(ask).atoms.find([Evidence(_question(ask), passages)], parts=True)
        return FoundAtoms(found)

    def needs_model(self, ask: Ask, gradients: GradientSum | None, read: FoundAtoms | None = None) -> bool:
        """Whether `prepare` will run the model: call it between decoding steps then."""
        known = LoadedAtoms(gradients, self.fingerprint) if gradients else read
        return self.opened(ask).method.runs_model(known.atoms if known else Atoms(()))

    def demonstrations(self, ask: Ask) -> tuple[Question, ...]:
        """Those that the request's method gets; raises `MethodError` or `RetrievalError` if they cannot be found."""
        settings = self.opened(ask).offer.settings
        if not settings.demonstrations:
            return ()
        return self._pool.chosen(settings, [replace(_question(ask), turns=ask.said)])[0]

    def prepare(
        self,
        ask: Ask,
        retrieved: Retrieved | None,
        gradients: GradientSum | None,
        demonstrations: tuple[Question, ...] = (),
        read: FoundAtoms | None = None,
    ) -> Prepared:
        """The request as its method plans it; `read` is what `read_atoms` gave, of a method with a bank of its own.

        Raises `NothingFound` if the method needs passages and there are none, `FingerprintMismatch` or `BankError` for
        gradients of something else, `PromptTooLong` if the prompt cannot be made to fit, and what the method raises,
        such as `AtomNotFound` by the policy `fail`.
        """
        opened = self.opened(ask)
        hits = retrieved.hits if retrieved else ()
        question = _question(ask)
        evidence = Evidence(
            question,
            tuple(hit.passage for hit in hits),
            tuple(hit.score for hit in hits),
            demonstrations,
            question.turns,
            ask.raw,
            ask.gamma,
        )
        atoms = (read or opened.atoms) if gradients is None else LoadedAtoms(gradients, self.fingerprint)
        (plan,) = opened.method.answer_plans([evidence], atoms)
        sampling = ask.sampling
        fitted = self._fitter.fitted(plan, sampling.max_new_tokens)
        plan = fitted.plan
        request = DecodingRequest(
            fitted.text,
            plan.updates,
            sampling.max_new_tokens,
            sampling.temperature,
            sampling.top_p,
            sampling.seed,
            sampling.stop,
            ask.raw,
            () if plan.prompt.passages else tuple(hit.passage.text for hit in hits),
            fitted.ids,
        )
        return Prepared(request, plan)

    def readings(self, prepared: Sequence[Prepared], text: str) -> list[AnswerBatch]:
        """A text with each of the passages, which were prepared one by one, in passes for `read`."""
        return self._reader.batches([one.plan for one in prepared], text)

    def read(self, ask: Ask, reading: AnswerBatch) -> Tensor:
        """log p(answer) [n] of one pass. Runs the model."""
        return self._reader.read(self._one_by_one(ask), reading)

    def texts_to_read(self, ask: Ask, answers: Sequence[Finished]) -> list[str]:
        """The texts whose likelihoods decide between answers with one passage each, or tell what each one did."""
        texts = different(answers)
        alone = len(texts) == 1 and (ask.contributions != "leave_one_out" or len(answers) == 1)
        return [] if alone else texts

    def chosen(
        self, ask: Ask, found: Retrieved, prepared: Sequence[Prepared], answers: Sequence[Finished], read: list[Tensor]
    ) -> tuple[Finished, Plan]:
        """Of answers with one passage each the best, and one plan that stands for all, with what each passage did.

        `read` are the likelihoods of `texts_to_read`. Left out, a passage takes its answer's likelihood with it, and
        the others share its weight; `norms` are those of the method. Raises `ModelError` as `best_of` does.
        """
        prior_K = log_prior(self._one_by_one(ask), [hit.score for hit in found.hits], found.temperature)
        best = best_of(_question(ask), prior_K, answers, torch.stack(read) if read else None)
        if ask.contributions == "leave_one_out" and read:
            values = without_each(prior_K, read[different(answers).index(best.text)])
            uses = [_contributing(one.plan.uses, value) for one, value in zip(prepared, values, strict=True)]
        elif ask.contributions == "norms":
            uses = [self.contributions(ask, one, best) for one in prepared]
        else:
            uses = [one.plan.uses for one in prepared]
        plans = [replace(one.plan, uses=each) for one, each in zip(prepared, uses, strict=True)]
        return best, together(plans)

    def _one_by_one(self, ask: Ask) -> OneByOneConfig:
        return self.opened(ask).offer.settings.one_by_one or OneByOneConfig()

    def contributions(self, ask: Ask, prepared: Prepared, finished: Finished) -> tuple[PassageUse, ...]:
        """The uses with each passage's part in the answer. Runs the model for `leave_one_out`."""
        plan = prepared.plan
        if ask.contributions is None:
            return plan.uses
        ended = finished.reason == "stop" and prepared.request.stop is None
        method = self.opened(ask).method
        values = method.contributions(ask.contributions, plan, prepared.request.prompt, finished.text, ended)
        if values is None:
            return plan.uses
        left = iter(values)
        return tuple(replace(use, contribution=next(left)) if not use.missing else use for use in plan.uses)


def _contributing(uses: Sequence[PassageUse], value: float) -> tuple[PassageUse, ...]:
    return tuple(use if use.missing else replace(use, contribution=value) for use in uses)
