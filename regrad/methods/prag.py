"""PRAG: the retrieved passages' trained LoRAs, summed; Combine Both, with the passages in the prompt as well.

`weighting: mean` gives each 1/k instead, as Orthogonal Subspace Decomposition (arXiv 2604.26768) merges them.

A LoRA of rank r for each passage lies in a bank of kind `adapter`. Those of a question stand side by side in the rank
of the model's subspace, which gives the sum of their products exactly. With a task warm-up (`prag-warm`: some hundred
questions; `ft-prag`: all training questions) one LoRA is trained on questions first and frozen; the adapters are
trained on top of it, and it is one more of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regrad.bank.io.prag import Frame, adapter_fingerprint
from regrad.bank.manifest import Layout
from regrad.errors import MethodError
from regrad.methods.atoms import BankAtoms, Found, bank_manifest
from regrad.methods.base import Asked, Made, Method, Updates
from regrad.methods.config import MethodConfig
from regrad.methods.static_lora import static_uri
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace
from regrad.training.lora.lora_artifact import StaticLora, check_joins, join, read_adapter_card

PRAG = Method("prag", "trained LoRAs applied, nothing in the prompt", passages_in_prompt=False, update="adapters")
PRAG_ICL = Method("prag+icl", "trained LoRAs and passages in the prompt", passages_in_prompt=True, update="adapters")
PRAG_WARM = Method(
    "prag-warm",
    "trained LoRAs on top of one for a few questions",
    passages_in_prompt=False,
    update="adapters",
    static=True,
)
FT_PRAG = Method(
    "ft-prag",
    "trained LoRAs on top of one for all training questions",
    passages_in_prompt=False,
    update="adapters",
    static=True,
)
_STATIC = {method.name for method in (PRAG_WARM, FT_PRAG)}
_WEIGHTINGS = ("sum", "mean")


def adapters_base(base_identity: str, static_digest: str | None = None) -> str:
    """What adapters were trained on, as their bank's fingerprint names it: the base weights, and a static LoRA."""
    return f"{base_identity}+{static_digest}" if static_digest else base_identity


def adapters_layout(subspace: Subspace, base: str) -> str:
    """The fingerprint of a bank of adapters of this subspace on this base."""
    return adapter_fingerprint(Frame(base, subspace))


def check_adapters(config: MethodConfig) -> None:
    """Raise `MethodError` if there is no bank of adapters, or if they were not trained upon the static LoRA.

    Also for settings that only gradients have.
    """
    if config.weighting not in _WEIGHTINGS:
        raise MethodError(f"{config.name}: adapters are merged by {' or '.join(_WEIGHTINGS)}, not {config.weighting!r}")
    if config.on_missing == "online":
        raise MethodError(f"{config.name}: adapters are not trained for a question; on_missing is fewer or fail")
    manifest = bank_manifest(config, "adapter")
    if config.kind in _STATIC:
        card = read_adapter_card(static_uri(config))
        _check_trained_on(manifest, [adapters_base(card["base_identity"], card["digest"])], config)


def open_adapters(config: MethodConfig, lm: LanguageModel) -> Updates:
    """Updates from the method's bank. Raises `MethodError` if its adapters belong to another base, or do not fit."""
    manifest, static = bank_manifest(config, "adapter"), None
    if config.kind in _STATIC:
        static = StaticLora.load(static_uri(config))
        static.check_base(lm)
        _check_trained_on(manifest, [adapters_base(static.base_identity, static.digest)], config)
    else:
        _check_trained_on(manifest, [lm.identity(), lm.config.path], config)
    return AdapterUpdates(config, lm.subspace, static)


class AdapterUpdates:
    """The static LoRA, if there is one, and the adapters of the question's passages, side by side."""

    def __init__(self, config: MethodConfig, target: Subspace, static: StaticLora | None) -> None:
        self._bank, self._target = BankAtoms(config), target
        self._each = self._bank.manifest.parsed_subspace()
        self._mean = config.weighting == "mean"
        self._static = [(static.subspace, static.values)] if static else []
        check_joins([subspace for subspace, _ in self._static] + [self._each], target)

    def __call__(self, asked: Sequence[Asked]) -> Made:
        """See `Updates`. Raises `MethodError` if a question has more passages than the subspace's rank allows."""
        found = self._bank.of_all(asked)
        return Made([self._update(item) for item in found], [item.bytes for item in found], [f.note for f in found])

    def _update(self, found: Found) -> Tensor | None:
        parts = [*self._static, *((self._each, atom_P) for atom_P in found.atoms)]
        weight = 1 / max(1, len(found.atoms)) if self._mean else 1.0
        weights = [*[1.0] * len(self._static), *[weight] * len(found.atoms)]
        return join(parts, self._target, weights) if parts else None


def _check_trained_on(manifest: Layout, bases: Sequence[str], config: MethodConfig) -> None:
    """An imported bank may name its base by the path in the adapters' own settings."""
    subspace = manifest.parsed_subspace()
    if manifest.fingerprint not in {adapters_layout(subspace, base) for base in bases}:
        upon = f"the adapter at {config.adapter}" if config.kind in _STATIC else "the base model alone"
        raise MethodError(
            f"the adapters in the bank at {config.bank} were not trained upon {upon} and these weights; train them "
            "with `regrad adapters`, or import them with --base-identity"
        )
