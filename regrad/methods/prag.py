"""PRAG: the trained LoRAs of the retrieved passages, summed; Combine Both has the passages in the prompt as well.

`weighting: mean` gives each 1/k instead; it is the default of D-PRAG (Orthogonal Subspace Decomposition, arXiv
2604.26768), whose adapters are trained on top of a task's LoRA and kept orthogonal to it.

A bank of kind `adapter` holds a LoRA of rank r for each passage, in the subspace that they were trained in: PRAG's is
all blocks, whatever the model's own is. Those of a question stand side by side in the rank, which gives exactly the sum
of their products. With a task warm-up (`prag-warm`: a few
hundred questions; `ft-prag`: all training questions) one LoRA is trained on questions first and frozen; the adapters
are trained on top of it, and it is added to the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from regrad.bank.config import OnMissingAdapter
from regrad.bank.format import BankKind, Layout
from regrad.bank.io.prag import Frame, adapter_fingerprint
from regrad.errors import MethodError
from regrad.methods.base import Artefacts, AtomProvider, Atoms, Evidence, Method, MethodInfo, Plan
from regrad.methods.policies import BankAtoms, BankSettings, handle_missing
from regrad.methods.static_lora import needed_adapter
from regrad.models.subspace import Subspace, Update
from regrad.settings import Location
from regrad.training.lora.lora_artifact import ADAPTER_CARD, StaticLora, join

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


def adapters_base(base_identity: str, static_digest: str | None = None) -> str:
    """What adapters were trained on, as their bank's fingerprint names it: the base weights and maybe a static LoRA."""
    return f"{base_identity}+{static_digest}" if static_digest else base_identity


def adapters_layout(subspace: Subspace, base: str) -> str:
    """The fingerprint of a bank of adapters of this subspace on this base."""
    return adapter_fingerprint(Frame(base, subspace))


class PragConfig(BankSettings):
    """prag, prag+icl: a bank of adapters that were trained on the base model alone."""

    KIND: ClassVar[BankKind] = "adapter"
    METHODS: ClassVar = (
        MethodInfo("prag", "trained LoRAs applied, nothing in the prompt", passages_in_prompt=False, update="adapters"),
        MethodInfo("prag+icl", "trained LoRAs and passages in the prompt", passages_in_prompt=True, update="adapters"),
    )

    weighting: Literal["sum", "mean"] = Field("sum", description="how several adapters become one")
    on_missing: OnMissingAdapter = Field(
        "fewer",
        description="for a passage without an adapter (none is trained while answering): leave it out (fewer), answer "
        "by RAG, or stop (fail)",
    )

    @property
    def artefacts(self) -> Artefacts:
        """See `MethodSettings`."""
        return Artefacts(bank=self.bank, bank_version=self.bank_version)

    def check(self) -> None:
        """See `MethodSettings`."""
        self.bank_manifest()

    def open(self, lm: LanguageModel) -> Method:
        """See `MethodSettings`. Raises `MethodError` or `ModelError` if the adapters belong to another base."""
        manifest = self.bank_manifest()
        _check_trained_on(manifest, [lm.identity(), lm.config.path], self, "the base model alone")
        return Prag(self, manifest, lm)


class PragOnLoraConfig(PragConfig):
    """prag-warm, ft-prag: a static LoRA, and a bank of adapters that were trained on top of it, or applied with it.

    In the second case (`adapters` of `regrad finetune`, the paper's FT-PRAG) both were trained on the base model.
    """

    METHODS: ClassVar = (
        MethodInfo(
            "prag-warm",
            "trained LoRAs on top of one trained on a few questions",
            passages_in_prompt=False,
            update="adapters",
        ),
        MethodInfo(
            "ft-prag",
            "trained LoRAs with one trained on all training questions",
            passages_in_prompt=False,
            update="adapters",
        ),
    )

    adapter: Location | None = Field(
        None, description="the static LoRA of `regrad finetune` that the adapters were trained on top of"
    )

    @property
    def artefacts(self) -> Artefacts:
        """See `MethodSettings`."""
        return Artefacts(bank=self.bank, bank_version=self.bank_version, adapter=self.adapter)

    def check(self) -> None:
        """See `MethodSettings`; also whether the adapters were trained on top of this LoRA."""
        manifest = self.bank_manifest()
        card = ADAPTER_CARD.read(needed_adapter(self))
        self._check_belongs(manifest, card["base_identity"], card["digest"], card.get("notes"))

    def open(self, lm: LanguageModel) -> Method:
        """See `MethodSettings`."""
        manifest = self.bank_manifest()
        static = StaticLora.load(needed_adapter(self))
        static.check_base(lm)
        self._check_belongs(manifest, static.base_identity, static.digest, static.notes)
        return Prag(self, manifest, lm, static)

    def _check_belongs(self, manifest: Layout, base: str, digest: str, notes: Any) -> None:
        if isinstance(notes, Mapping) and notes.get("adapters") == manifest.fingerprint:
            return
        _check_trained_on(manifest, [adapters_base(base, digest)], self, f"the adapter at {self.adapter}")


class DPragConfig(PragOnLoraConfig):
    """d-prag, d-prag+icl: a static LoRA for the task, and a bank of adapters that were kept orthogonal to it.

    Which constraint they were trained with, `soft_orthogonality` or `hard_orthogonality` of `regrad adapters`, or none,
    does not change how they are applied.
    """

    METHODS: ClassVar = (
        MethodInfo(
            "d-prag",
            "trained LoRAs, orthogonal to one that was trained on the task",
            passages_in_prompt=False,
            update="adapters",
        ),
        MethodInfo("d-prag+icl", "the same, and passages in the prompt", passages_in_prompt=True, update="adapters"),
    )

    weighting: Literal["sum", "mean"] = Field("mean", description="how several adapters become one")


class Prag(Method):
    """The static LoRA, if there is one, and the adapters of the question's passages, side by side."""

    def __init__(
        self, settings: PragConfig, manifest: Layout, lm: LanguageModel, static: StaticLora | None = None
    ) -> None:
        super().__init__(settings)
        self._settings = settings
        self._each = manifest.parsed_subspace()
        self._static = [(static.subspace, static.values)] if static else []
        lm.lora_for(self._each)  # an imported bank may say only by name what its base was

    def open_atoms(self) -> AtomProvider:
        """See `Method`."""
        return BankAtoms(self._settings)

    @property
    def needs_passages(self) -> bool:
        """See `Method`."""
        return self._settings.on_missing == "fail"

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """See `Method`."""
        found = atoms.find(evidences, parts=True)
        return [self._plan(*pair) for pair in zip(evidences, found, strict=True)]

    def _plan(self, evidence: Evidence, found: Atoms) -> Plan:
        handled = handle_missing(found, evidence.passages, self._settings.on_missing, "adapter")
        atoms = handled.atoms
        prompt = self.prompt(evidence, atoms.uses, handled.by_rag)
        rows = list(atoms.parts) if atoms.parts is not None else []
        parts = [*self._static, *((self._each, atom_P) for atom_P in rows)]
        updates: tuple[Update, ...] = ()
        if parts and not handled.by_rag:
            mean = rows and self._settings.weighting == "mean"
            weight = evidence.gamma / len(rows) if mean else evidence.gamma
            # Gamma scales what the passages add; the static LoRA is what they were trained on top of.
            joined = join(parts, [1.0] * len(self._static) + [weight] * len(rows))
            updates = tuple(Update(subspace, vector_P) for subspace, vector_P in joined.items())
        return Plan(prompt, updates, handled.notes, atoms.uses, bytes_fetched=atoms.bytes)


def _check_trained_on(manifest: Layout, bases: Sequence[str], settings: PragConfig, base_name: str) -> None:
    # Several bases, as an imported bank may name its base by the path in the adapters' own settings.
    subspace = manifest.parsed_subspace()
    if manifest.fingerprint not in {adapters_layout(subspace, base) for base in bases}:
        raise MethodError(
            f"the adapters in the bank at {settings.bank} were not trained on top of {base_name} and these weights; "
            "train them with `regrad adapters`, or import them with --base-identity",
            code="adapters_of_another_base",
            uri=settings.bank,
            base=base_name,
        )
