"""What the generator makes of a request before and after decoding, by the same plan of a method as an evaluation's.

What retriever and bank loader gave becomes evidence and atoms; the method decides what comes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from regrad.data.questions import Question
from regrad.errors import FingerprintMismatch, NothingFound
from regrad.inference.rows import DecodingRequest, Finished
from regrad.methods.base import AtomProvider, Atoms, Evidence, Method, NoAtoms, PassageUse, Plan
from regrad.methods.regrad import BoundMetaInit, GradientSettings, ReGrad
from regrad.models.loading import LanguageModel
from regrad.prompts import PromptFormat
from serve_app.messages import Ask, GradientSum, Retrieved
from serve_app.offers import Offer


class LoadedAtoms:
    """The atoms of one question as the bank loader summed them. Raises `FingerprintMismatch` for another MetaInit's."""

    def __init__(self, gradients: GradientSum, fingerprint: str) -> None:
        if gradients.fingerprint != fingerprint:
            raise FingerprintMismatch(gradients.fingerprint, fingerprint)
        had = any(not use.missing for use in gradients.uses)
        self.atoms = Atoms(
            gradients.uses,
            gradients.total.float() if had else None,
            gradients.parts,
            bank=gradients.bank,
        )

    def find(self, evidences: Sequence[Evidence], parts: bool) -> list[Atoms]:
        """See `AtomProvider`."""
        return [self.atoms for _ in evidences]


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
    own = {name: offer for name, offer in offers.items() if not isinstance(offer.settings, GradientSettings)}
    methods = {name: offer.settings.open(lm) for name, offer in own.items()}
    return {name: Opened(own[name], method, method.open_atoms()) for name, method in methods.items()}


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to be decoded, and the plan that it was made of."""

    request: DecodingRequest
    plan: Plan


class RequestBuilder:
    """Makes the requests of one release: the methods that need nothing of it, and the others at its MetaInit."""

    def __init__(
        self,
        bound: BoundMetaInit,
        prompts: PromptFormat,
        offers: Mapping[str, Offer],
        own: Mapping[str, Opened],
        demonstrations: Sequence[Question] = (),
    ) -> None:
        self._fingerprint, self._prompts, self._demonstrations = bound.fingerprint, prompts, demonstrations
        self._opened = dict(own)
        for name, offer in offers.items():
            if isinstance(offer.settings, GradientSettings):
                self._opened[name] = Opened(offer, offer.settings.open_at(bound), NoAtoms())

    def opened(self, ask: Ask) -> Opened:
        """The request's method."""
        return self._opened[ask.method]

    def needs_model(self, ask: Ask, gradients: GradientSum | None) -> bool:
        """Whether `prepare` will run the model: call it between decoding steps then."""
        atoms = LoadedAtoms(gradients, self._fingerprint).atoms if gradients else Atoms(())
        return self.opened(ask).method.runs_model(atoms)

    def prepare(self, ask: Ask, retrieved: Retrieved | None, gradients: GradientSum | None) -> Prepared:
        """The request as its method plans it.

        Raises `NothingFound` if the method needs passages and there are none, `FingerprintMismatch` or `BankError` for
        gradients of something else, and what the method raises, such as `AtomNotFound` by the policy `fail`.
        """
        opened = self.opened(ask)
        evidence = self._evidence(ask, retrieved)
        if opened.offer.info.retrieves and not evidence.passages:
            raise NothingFound("no passage of the index matches the question")
        (plan,) = opened.method.plan([evidence], self._atoms(opened, gradients))
        s = ask.sampling
        request = DecodingRequest(
            plan.prompt.text(self._prompts),
            plan.updates,
            s.max_new_tokens,
            s.temperature,
            s.top_p,
            s.seed,
            s.stop,
            ask.raw,
        )
        return Prepared(request, plan)

    def contributions(self, ask: Ask, prepared: Prepared, finished: Finished) -> tuple[PassageUse, ...]:
        """The uses with each passage's part in the answer. Runs the model for `leave_one_out`."""
        plan, method = prepared.plan, self.opened(ask).method
        if ask.contributions is None or plan.parts is None or not isinstance(method, ReGrad):
            return plan.uses
        if ask.contributions == "norms":
            values = method.norms(plan)
        else:
            ended = finished.reason == "stop" and prepared.request.stop is None
            values = method.leave_one_out(plan, prepared.request.prompt, finished.text, ended)
        left = iter(values)
        return tuple(replace(use, contribution=next(left)) if not use.missing else use for use in plan.uses)

    def _atoms(self, opened: Opened, gradients: GradientSum | None) -> AtomProvider:
        return opened.atoms if gradients is None else LoadedAtoms(gradients, self._fingerprint)

    def _evidence(self, ask: Ask, retrieved: Retrieved | None) -> Evidence:
        hits = retrieved.hits if retrieved else ()
        shown = self.opened(ask).offer.settings.demonstrations
        return Evidence(
            Question("", ask.question, (), ask.kind, ask.choices),
            tuple(hit.passage for hit in hits),
            tuple(hit.score for hit in hits),
            tuple(self._demonstrations[:shown]),
            tuple((turn.role, turn.content) for turn in ask.turns),
            ask.raw,
            ask.gamma,
        )
