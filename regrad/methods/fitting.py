"""Whether a method's LoRAs can be applied in a model's subspace, as far as their cards say it: no model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regrad.adaptation.joining import check_ranks
from regrad.adaptation.static import read_adapter_card
from regrad.config import MethodConfig, SubspaceConfig
from regrad.errors import MetaInitError, MethodError
from regrad.language_model.subspace import Subspace
from regrad.meta_init import read_card
from regrad.methods.banks import bank_manifest
from regrad.methods.names import get_method
from regrad.methods.static import static_uri


def check_fits(config: MethodConfig, target: SubspaceConfig, passages: int) -> None:
    """Raise `MethodError` or `MetaInitError` if the rank or scale of the method's LoRAs does not fit the model's.

    A static LoRA and the adapters of at most `passages` stand side by side in the rank; a MetaInit has the model's own.
    """
    method, ranks = get_method(config.kind), []
    if method.static:
        uri = static_uri(config)
        ranks.append(_subspace(read_adapter_card(uri), uri).rank)
    if method.update == "adapters":
        ranks += [bank_manifest(config, "adapter").parsed_subspace().rank] * passages
    try:
        check_ranks(ranks, target.rank)
    except MethodError as error:
        raise MethodError(f"{config.name}: {error}") from error
    if method.applies_gradients and config.meta_init:
        _check_same(config, target, _subspace(read_card(config.meta_init), config.meta_init))


def _check_same(config: MethodConfig, target: SubspaceConfig, found: Subspace) -> None:
    if (found.rank, found.scaling) != (target.rank, target.scaling):
        raise MetaInitError(
            f"{config.name}: the MetaInit at {config.meta_init} has rank {found.rank} and scale {found.scaling:g}, and "
            f"the model's settings have rank {target.rank} and scale {target.scaling:g}; set model.subspace as it was "
            "when the MetaInit was trained"
        )


def _subspace(card: Mapping[str, Any], uri: str) -> Subspace:
    try:
        return Subspace.from_json(card["subspace"])
    except (KeyError, TypeError, ValueError) as error:
        raise MethodError(f"the card at {uri} is damaged: its subspace cannot be read") from error
